"""`llama-launch local`: llama-train on this machine, with as many processes as it has devices."""

import shlex
import signal
import subprocess
import sys

from launch.address import free_port
from launch.config import Job, check_processes
from launch.gpus import gpu_facts
from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig


def processes_here(train: TrainConfig, asked: int | None) -> int:
    """Return how many processes this machine runs: as asked, else one per GPU, else one."""
    return asked or train.cluster.processes_per_node or max(gpus_here(train.cluster.device), 1)


def gpus_here(device: str) -> int:
    """Count the GPUs that nvidia-smi lists; none where it is missing or `cluster.device` is cpu."""
    return 0 if device == "cpu" else len(gpu_facts("index"))


def local(job: Job) -> int:
    """Run the job here and return its exit status.

    Raises:
        ConfigError: more than one node was asked for, or the layout does not fit this machine.
    """
    if job.launch.node_range() != (1, 1):
        raise ConfigError(f"nodes={job.launch.nodes}: this machine is one node; use llama-launch slurm, or hosts")
    count = processes_here(job.train, job.launch.processes_per_node)
    check_processes(job.train, 1, count)
    agent = ["launch.torchrun", f"--processes={count}", f"--port={free_port()}"] if count > 1 else []
    command = [sys.executable, "-m", *agent, "llama_train", *job.arguments]
    print(shlex.join(command), file=sys.stderr if not job.launch.dry_run else sys.stdout, flush=True)
    if job.launch.dry_run:
        return 0
    return run_to_end(command)


def run_to_end(command: list[str]) -> int:
    """Run `command` in the foreground; ctrl-c and SIGTERM are its own to answer."""
    with subprocess.Popen(command) as process:
        before = {
            number: signal.signal(number, lambda got, frame: process.send_signal(got))
            for number in (signal.SIGTERM, signal.SIGUSR1)
        }
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda got, frame: None)  # the terminal sends it to both
        try:
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return status if status >= 0 else 128 - status
