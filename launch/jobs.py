"""`python -m launch.jobs PROCESSES --multirun ...`: the jobs of a sweep on this machine, one after the other.

Hydra composes every job in this process; each then runs in processes of its own. One that crashes takes nothing with
it, and a job can have as many ranks as the machine has devices.
"""

import shlex
import sys

from hydra.core.hydra_config import HydraConfig

from launch.address import free_port
from launch.config import check_processes
from launch.local import run_to_end
from llama_foundation import compose
from llama_train.__main__ import asked_to_stop, objective
from llama_train.config import TrainConfig

STOPPED = (130, 138, 143)
"""Statuses of a process that SIGINT, SIGUSR1 or SIGTERM ended before its first step."""


def main() -> int:
    count = int(sys.argv.pop(1))

    def run(config: TrainConfig) -> int:
        check_processes(config, 1, count)
        command = [sys.executable, "-m", *job(count, HydraConfig.get().overrides.task, config.name)]
        print(shlex.join(command), file=sys.stderr, flush=True)
        status = run_to_end(command)
        if status in STOPPED or (status == 0 and asked_to_stop(config)):
            raise KeyboardInterrupt  # the signal was meant for the sweep, not for one of its jobs
        return status

    return compose.main("train", TrainConfig, run, objective)


def job(count: int, overrides: list[str], name: str) -> list[str]:
    """Return the command of one job, which by itself resumes it."""
    agent = ["launch.torchrun", f"--processes={count}", f"--port={free_port()}"] if count > 1 else []
    others = [override for override in overrides if override.lstrip("+").partition("=")[0] != "name"]
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')  # a name of a sweep holds = and commas
    return [*agent, "llama_train", *others, f'name="{quoted}"']


if __name__ == "__main__":
    sys.exit(main())
