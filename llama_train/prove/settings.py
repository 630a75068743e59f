"""The settings of `llama-prove`: those of a training run, and how to prove it."""

from dataclasses import dataclass, field
from enum import Enum

from llama_foundation.errors import ConfigError
from llama_train.config import EngineName, Precision, TrainConfig
from llama_train.prove.shrink import MOST_RANKS
from llama_train.prove.stretch import FAULTS


class Matrix(Enum):
    """Which layouts are run against one process."""

    own = "own"  # the configuration's
    reduced = "reduced"  # some of `full`, in a few minutes
    full = "full"  # every axis alone, every pair, more together, every schedule and method, the hard cases


@dataclass
class ProveSettings:
    """What to prove and how to say it."""

    matrix: Matrix = Matrix.own
    ranks: int = MOST_RANKS  # prove.matrix=own: most processes of a case; 32 run five axes together
    precision: Precision | None = None  # fp32 and bf16 are held against a spread; null: fp64, fp32 for DeepSpeed
    json: bool = False  # print one JSON object instead of a table
    table: str | None = None  # write the table to this file too, as Markdown
    fault: str | None = None  # plant a known fault, to see that the proof notices it


@dataclass
class ProveConfig(TrainConfig):
    """A training configuration, and how to prove it."""

    prove: ProveSettings = field(default_factory=ProveSettings)

    def check(self) -> None:
        super().check()
        if self.prove.ranks < 2:
            raise ConfigError(f"prove.ranks={self.prove.ranks} must be at least 2; 8 run three axes together")
        if self.prove.fault is not None and self.prove.fault not in FAULTS:
            raise ConfigError(f"prove.fault={self.prove.fault} is not known; use one of {', '.join(FAULTS)}")
        if self.engine.name is EngineName.deepspeed and self.prove.precision is Precision.fp64:
            raise ConfigError(
                "prove.precision=fp64 with engine=deepspeed: DeepSpeed has no float64; use prove.precision=fp32 or "
                "bf16, or engine=native"
            )

    @property
    def precision(self) -> Precision:
        """What the cases compute in."""
        exact = Precision.fp32 if self.engine.name is EngineName.deepspeed else Precision.fp64
        return self.prove.precision or exact
