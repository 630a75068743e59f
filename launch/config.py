"""The settings of the launcher itself, and how a command line is split between it and the command that it starts."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.parallel.resolve import check_nodes, resolve_layout


@dataclass
class LaunchConfig:
    """Where and how often llama-train runs. Everything else on the command line is llama-train's own."""

    nodes: str = "1"  # "64", or "48-64" where the run may go on with fewer
    processes_per_node: int | None = None  # null: cluster.processes_per_node, else one per GPU of this machine
    hosts: list[str] = field(default_factory=list)  # of a cluster without SLURM; the first is where all meet
    start: bool = False  # hosts: start them by ssh instead of printing the lines
    port: int = 29500  # hosts: where all meet, on the first host
    dry_run: bool = False  # show what would run or be submitted, and stop

    def check(self) -> None:
        self.node_range()
        if self.processes_per_node is not None and self.processes_per_node < 1:
            raise ConfigError(f"processes_per_node={self.processes_per_node} must be at least 1")
        if not 1024 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be between 1024 and 65535")
        for host in self.hosts:
            if not re.fullmatch(r"[A-Za-z0-9_][\w.@-]*", host):
                raise ConfigError(f"hosts: {host!r} is no name of a host")
        if len(set(self.hosts)) < len(self.hosts):
            raise ConfigError(
                f"hosts={','.join(self.hosts)} names a host twice; use processes_per_node for more of one"
            )

    def node_range(self) -> tuple[int, int]:
        """Return the least and the greatest number of nodes."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", self.nodes)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high:
            raise ConfigError(f"nodes={self.nodes}; give a number of nodes, or the least and the most: 48-64")
        return low, high


@dataclass(frozen=True)
class Job:
    """A checked launch: what runs, where, and on how many processes."""

    launch: LaunchConfig
    train: TrainConfig
    arguments: list[str]
    """llama-train's own command line."""

    @property
    def directory(self) -> Path:
        return Path(self.train.output).absolute() / self.train.name


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (the launcher's overrides, the command's)."""
    own = {column.name for column in fields(LaunchConfig)}
    mine = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") in own]
    return mine, [argument for argument in arguments if argument not in mine]


def read_job(arguments: list[str]) -> Job:
    """Compose and check both configurations.

    Raises:
        ConfigError: either is wrong, or a flag of Hydra was given.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        raise ConfigError(f"{' '.join(flags)}: the launcher takes settings only; for a sweep: llama-launch sweep ...")
    mine, others = split(arguments)
    launch = compose.compose("launch", LaunchConfig, mine)
    return Job(launch, compose.compose("train", TrainConfig, others), others)


def check_processes(train: TrainConfig, nodes: int, processes_per_node: int) -> None:
    """Refuse, before anything waits in a queue, what the ranks would refuse at their start.

    Raises:
        ConfigError: the layout or the batch does not divide among so many processes.
    """
    check_nodes(resolve_layout(train, nodes * processes_per_node), processes_per_node)
