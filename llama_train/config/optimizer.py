"""AdamW and the learning rate over the steps."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least, in_range


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), decoupled weight decay, none on norms."""

    learning_rate: float = MISSING  # peak
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # global L2 norm; 0: no clipping

    def check(self) -> None:
        in_range("optimizer.learning_rate", self.learning_rate, 0, 10)
        in_range("optimizer.beta1", self.beta1, 0, 1)
        in_range("optimizer.beta2", self.beta2, 0, 1)
        in_range("optimizer.epsilon", self.epsilon, 0, 1)
        in_range("optimizer.weight_decay", self.weight_decay, 0, 10)
        in_range("optimizer.max_grad_norm", self.max_grad_norm, 0, 1e9)


class ScheduleName(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    warmup_stable_decay = "warmup_stable_decay"


@dataclass
class ScheduleConfig:
    """Learning rate over steps, as a factor of optimizer.learning_rate (optimizer/schedule.py)."""

    name: ScheduleName = ScheduleName.cosine
    warmup_steps: int = 0  # linear from 0
    decay_steps: int | None = None  # warmup_stable_decay: length of the last, linear part
    final_fraction: float = 0.1  # the floor, as a fraction of the peak
    total_steps: int | None = None  # where the schedule ends; null: at `steps`

    def check(self) -> None:
        at_least("schedule.warmup_steps", self.warmup_steps, 0)
        in_range("schedule.final_fraction", self.final_fraction, 0, 1)
        if self.name is ScheduleName.warmup_stable_decay and self.decay_steps is None:
            raise ConfigError("schedule.decay_steps=null: warmup_stable_decay needs the length of its decay, in steps")
