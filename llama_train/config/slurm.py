"""What a cluster's SLURM has to be told: `cluster.slurm`, read by the launcher and ignored by training itself."""

import re
from dataclasses import dataclass, field
from enum import Enum

from llama_foundation.errors import ConfigError


class Tasks(Enum):
    """What srun starts."""

    node = "node"  # one torchrun on each node, which starts the ranks
    rank = "rank"  # every rank by itself


@dataclass
class SlurmConfig:
    """Options of sbatch and what the job does before it trains. null leaves an option to the cluster's defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    time: str | None = None  # limit of one attempt: MM, HH:MM:SS or D-HH:MM:SS
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    memory: str | None = None  # per node; "0" asks for all of it
    exclusive: bool = False
    options: list[str] = field(default_factory=list)  # any others, as sbatch takes them: "--exclude=node7"
    tasks: Tasks = Tasks.node
    setup: list[str] = field(default_factory=list)  # shell lines that run first: module load, source venv/bin/activate
    python: str | None = None  # interpreter on the nodes; null: the one that runs the launcher
    copy_code: bool = True  # the job runs a copy made at submission; false: what is in the working directory by then
    container_image: str | None = None  # for the pyxis plugin of srun
    container_python: str = "python"  # interpreter in the image, which has this project and its dependencies
    container_mounts: list[str] = field(
        default_factory=list
    )  # SOURCE:TARGET; the run and working directories are added
    first_port: int = 20000  # a job meets at first_port + (job id modulo port_count)
    port_count: int = 10000
    warning_seconds: int = 180  # SIGUSR1 that long before the time limit: must cover a step and a checkpoint
    requeue: bool = True  # go on until the last step is done
    attempts_without_progress: int = 3  # then the job stops requeueing; a new checkpoint is progress

    def check(self) -> None:
        for name in ("partition", "account", "qos", "reservation", "constraint", "memory"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.:&|*\[\]@,/+-]+", value):
                raise ConfigError(f"cluster.slurm.{name}={value!r} holds characters that SLURM has no names with")
        if self.time is not None and not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", self.time):
            raise ConfigError(f"cluster.slurm.time={self.time}; write minutes, HH:MM:SS or D-HH:MM:SS")
        for name in ("gpus_per_node", "cpus_per_node", "warning_seconds", "attempts_without_progress", "port_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"cluster.slurm.{name}={value} must be at least 1")
        if not 1024 <= self.first_port <= self.first_port + self.port_count <= 65536:
            raise ConfigError(
                f"cluster.slurm.first_port={self.first_port} and port_count={self.port_count} give ports outside of "
                "1024 to 65535"
            )
        for option in self.options:
            if not re.fullmatch(r"--[a-z][\w-]*(=\S+)?", option):
                raise ConfigError(f"cluster.slurm.options: {option!r} is not of the form --option or --option=value")
        for line in self.setup:
            if "\n" in line:
                raise ConfigError("cluster.slurm.setup: an entry is one line of shell; use several entries")
