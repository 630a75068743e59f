"""The settings of `llama-plan`: those of a training run, on how many machines, and what to plan."""

from dataclasses import dataclass, field

from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig


@dataclass
class PlanSettings:
    """What to plan and how to say it."""

    search: bool = True  # rank other layouts too
    top: int = 10  # layouts in the table
    tokens: float | None = None  # a budget instead of `steps`: as many steps as it lasts
    exact: bool = False  # really build the fullest rank under fake tensors, and compare
    write: str | None = None  # write the best layout to this file, a member of configs/layout/
    picture: str | None = None  # draw batch size, sequence length and learning rate over tokens: .png or .svg
    json: str | None = None  # write every figure to this file
    calibrate: str | None = None  # a run directory, or gpu-results.json of benchmarks/gpu.py: correct the speed by it
    margin: float = 0.05  # assumed: of the memory, lost in the allocator's pieces
    price_per_gpu_hour: float | None = None  # in any currency
    faults_per_device_hour: float | None = None  # say what is left of the time; Llama 3 had 419 / (16,384 × 54 × 24)
    restart_seconds: float = 300.0  # assumed: from a fault to the next new step
    stall_seconds: float = 5.0  # assumed: that one checkpoint keeps the steps waiting
    write_seconds: float = 60.0  # assumed: after which it is whole; a fault before goes back to the one before
    pue: float = 1.1  # power usage effectiveness ("LLaMA", section 6)
    kg_co2e_per_kwh: float = 0.385  # US average ("LLaMA", section 6)

    def check(self) -> None:
        if self.top < 1:
            raise ConfigError(f"plan.top={self.top} must be at least 1")
        for name, low, high in (("margin", 0, 0.5), ("pue", 1, 3), ("kg_co2e_per_kwh", 0, 2)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"plan.{name}={value} must be between {low} and {high}")
        for name in ("faults_per_device_hour", "restart_seconds", "stall_seconds", "write_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1e6:
                raise ConfigError(f"plan.{name}={value} must be between 0 and 1,000,000")
        if self.price_per_gpu_hour is not None and self.price_per_gpu_hour < 0:
            raise ConfigError(f"plan.price_per_gpu_hour={self.price_per_gpu_hour} must be at least 0")
        if self.picture is not None and not self.picture.endswith((".png", ".svg")):
            raise ConfigError(f"plan.picture={self.picture} must end in .png or .svg")


@dataclass
class PlanConfig(TrainConfig):
    """A training configuration, the machines, and what to plan."""

    nodes: int | None = None  # machines of cluster.devices_per_node devices; null: what the layout needs, else 1
    plan: PlanSettings = field(default_factory=PlanSettings)

    def check(self) -> None:
        super().check()
        self.plan.check()
        if self.nodes is not None and self.nodes < 1:
            raise ConfigError(f"nodes={self.nodes} must be at least 1")
