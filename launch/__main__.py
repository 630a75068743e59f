"""llama-launch local|slurm|hosts [nodes=N processes_per_node=N ...] and everything that llama-train takes

llama-launch local  experiment=...                       on this machine, one process per GPU
llama-launch slurm  cluster=... nodes=64 experiment=...  as a job that goes on until it is done; dry_run=true
llama-launch hosts  hosts=[a,b] experiment=...           the line for every machine of a cluster without SLURM
llama-launch sweep  sweep=learning_rate ...              several runs, here or where=slurm, and a comparison of them
llama-launch data   cluster=... engine=array|ray ...     llama-data as a job array, or on Ray over the nodes of a job
llama-launch evaluate cluster=... output=FILE ...        llama-evaluate as a job
llama-launch doctor cluster=... nodes=64 directory=DIR   whether the machines are fit; full=true: every pair of nodes
llama-launch status run=DIR                              its jobs, its attempts, how far it is
llama-launch logs   run=DIR                              the end of its newest log
llama-launch stop   run=DIR                              write a checkpoint, end, do not come back; now=true: cancel
"""

import importlib
import sys
from collections.abc import Callable

from launch import runs
from launch.config import Job, read_job
from launch.doctor import DoctorConfig, doctor
from launch.hosts import hosts
from launch.local import local
from launch.slurm import slurm
from llama_foundation import compose
from llama_foundation.errors import ConfigError, exit_status
from llama_foundation.files import not_for_everybody_to_write

JOBS: dict[str, Callable[[Job], int]] = {"local": local, "slurm": slurm, "hosts": hosts}
OTHERS = {"data": "launch.batch", "evaluate": "launch.batch", "sweep": "launch.sweep"}
"""First word -> the module that has the function of that name: imported late, they bring torch and matplotlib."""
RUNS: dict[str, Callable[[runs.RunsConfig], int]] = {"status": runs.status, "logs": runs.logs, "stop": runs.stop}


def main() -> int:
    """Do what the first word says; return the exit status."""
    not_for_everybody_to_write()
    word = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    return exit_status(lambda: _do(word))


def _do(word: str) -> int:
    if word in ("-h", "--help", "help"):
        print(__doc__, end="")
        return 0
    if word in JOBS:
        return JOBS[word](read_job(sys.argv[1:]))
    if word in RUNS:
        return compose.main("runs", runs.RunsConfig, RUNS[word])
    if word in OTHERS:
        return getattr(importlib.import_module(OTHERS[word]), word)(sys.argv[1:])
    if word == "doctor":
        return compose.main("doctor", DoctorConfig, doctor)
    raise ConfigError(f"llama-launch {word}: use one of {', '.join([*JOBS, *OTHERS, 'doctor', *RUNS])}")


if __name__ == "__main__":
    sys.exit(main())
