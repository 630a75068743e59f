"""Every setting of a training run: typed, with its unit, and checked as a whole before a process group exists.

The YAML files under `configs/` fill these classes, a file here for each group there. `TrainConfig.check` finds what
contradicts itself; what depends on the data or on the number of processes is checked where those are known
(`data/order.py`, `parallel/layout.py`).
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from llama_foundation.errors import ConfigError
from llama_train.config.checkpoint import CheckpointConfig
from llama_train.config.checks import at_least
from llama_train.config.cluster import ClusterConfig
from llama_train.config.data import DataConfig, Packing, Segment, ValidationConfig
from llama_train.config.engine import (
    ActivationCheckpointing,
    AttentionName,
    EngineConfig,
    EngineName,
    Float8,
    OffloadTo,
    Precision,
    ReduceGradients,
    Reshard,
)
from llama_train.config.layout import ContextMethod, LayoutConfig, PipelineSchedule
from llama_train.config.logging import ConsoleName, LoggingConfig
from llama_train.config.model import ModelConfig, RopeScaling
from llama_train.config.optimizer import OptimizerConfig, ScheduleConfig, ScheduleName
from llama_train.config.survive import OnNonFinite, OnSpike, SurviveConfig
from llama_train.survive.fault_plan import parse_faults

__all__ = [
    "ActivationCheckpointing",
    "AttentionName",
    "CheckpointConfig",
    "ClusterConfig",
    "ConsoleName",
    "ContextMethod",
    "DataConfig",
    "EngineConfig",
    "EngineName",
    "Float8",
    "LayoutConfig",
    "LoggingConfig",
    "ModelConfig",
    "OffloadTo",
    "OnNonFinite",
    "OnSpike",
    "OptimizerConfig",
    "Packing",
    "PipelineSchedule",
    "Precision",
    "ReduceGradients",
    "Reshard",
    "RopeScaling",
    "ScheduleConfig",
    "ScheduleName",
    "Segment",
    "SurviveConfig",
    "TrainConfig",
    "ValidationConfig",
]

CHECKED = (
    "model",
    "data",
    "validation",
    "optimizer",
    "schedule",
    "layout",
    "engine",
    "checkpoint",
    "survive",
    "cluster",
)
"""The groups that check themselves; logging needs the number of steps as well."""


@dataclass
class TrainConfig:
    """One training run."""

    output: str = "runs"  # parent of all run directories
    name: str = "train"  # the run directory is output/name
    seed: int = 0
    steps: int = MISSING  # optimizer steps of the whole run
    stop_at_step: int | None = None  # end this process early, as if asked to stop; the run can go on later
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    survive: SurviveConfig = field(default_factory=SurviveConfig)
    fault: dict[str, str] = field(default_factory=dict)  # faults injected on purpose: +fault.kill=rank2@step7

    def check(self) -> None:
        """Find every contradiction that needs neither data nor devices to be seen.

        Raises:
            ConfigError: naming the setting, its value, what is allowed and the fix.
        """
        at_least("steps", self.steps, 1)
        if self.stop_at_step is not None:
            at_least("stop_at_step", self.stop_at_step, 1)
        if not self.name or self.name.startswith((".", "/")) or ".." in self.name.split("/"):
            raise ConfigError(f"name={self.name!r} must be a plain directory name below output={self.output}")
        for name in CHECKED:
            getattr(self, name).check()
        longest = self.data.longest_sequence()
        if longest > self.model.context:
            raise ConfigError(
                f"data.sequence_length={longest} is longer than model.context={self.model.context}; "
                f"use at most {self.model.context}, or a model with a longer context"
            )
        total = self.schedule.total_steps or self.steps
        if self.schedule.warmup_steps + (self.schedule.decay_steps or 0) > total:
            raise ConfigError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} and schedule.decay_steps="
                f"{self.schedule.decay_steps} do not fit into {total} steps"
            )
        self.survive.deadlines.check(self.engine.timeout_seconds)
        self.logging.check(self.steps)
        parse_faults(self.fault)
        at_least("engine.garbage_collection_every", self.engine.garbage_collection_every, 0)
        if self.logging.memory_snapshot_steps and self.cluster.device == "cpu":
            raise ConfigError(
                f"logging.memory_snapshot_steps={self.logging.memory_snapshot_steps}: only CUDA's allocator keeps a "
                "history, and cluster.device=cpu; use logging.memory_snapshot_steps=[]"
            )
