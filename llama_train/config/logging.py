"""Where the numbers of a run go."""

from dataclasses import dataclass, field
from enum import Enum

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least


class ConsoleName(Enum):
    auto = "auto"  # progress bar on a terminal, plain lines elsewhere
    progress = "progress"
    lines = "lines"
    none = "none"


LOOKED_AT_STEPS = 20
"""Most steps whose trace or memory snapshot one run writes: a trace of one step may take 100 MB."""


@dataclass
class LoggingConfig:
    """Where the numbers go. metrics.jsonl is always written."""

    console: ConsoleName = ConsoleName.auto
    every: int = 10  # optimizer steps between plain console lines
    wandb: bool = False
    wandb_project: str = "llama-train"
    wandb_entity: str | None = None
    tensorboard: bool = False
    report: bool = True  # report.html when the process ends
    # Looking inside of single steps. Steps count as in metrics.jsonl: the first is 1.
    profile_steps: list[int] = field(default_factory=list)  # traced into RUN/profile
    profile_ranks: list[int] = field(default_factory=lambda: [0])  # whose traces and memory snapshots are written
    memory_snapshot_steps: list[int] = field(default_factory=list)  # every CUDA allocation, into RUN/memory
    statistics_every: int = 0  # optimizer steps between statistics of every parameter and layer; 0: never

    def check(self, steps: int) -> None:
        """Args: steps: of the whole run."""
        at_least("logging.statistics_every", self.statistics_every, 0)
        for name in ("profile_steps", "memory_snapshot_steps"):
            chosen = getattr(self, name)
            if len(chosen) > LOOKED_AT_STEPS:
                raise ConfigError(
                    f"logging.{name} lists {len(chosen)} steps; use at most {LOOKED_AT_STEPS}: each leaves a large file"
                )
            for step in chosen:
                if not 1 <= step <= steps:
                    raise ConfigError(f"logging.{name}={chosen}: step {step} must be between 1 and steps={steps}")
        if not self.profile_ranks and (self.profile_steps or self.memory_snapshot_steps):
            raise ConfigError("logging.profile_ranks=[] leaves nobody to write what was asked for; use [0]")
        for rank in self.profile_ranks:
            at_least("logging.profile_ranks", rank, 0)
