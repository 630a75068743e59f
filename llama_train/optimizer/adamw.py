"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019), its state there from the start."""

from collections.abc import Iterable
from typing import Any

import torch

from llama_train.config import OptimizerConfig
from llama_train.model.names import decays


def build_adamw(parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Build the optimizer over (canonical name, parameter) pairs, with its state."""
    named = list(parameters)
    optimizer = adamw_without_state(named, config)
    for _, parameter in named:
        optimizer.state[parameter] = first_state(parameter)
    return optimizer


def adamw_without_state(
    named: list[tuple[str, torch.nn.Parameter]], config: OptimizerConfig, fused: bool = True
) -> torch.optim.AdamW:
    """Build the optimizer in two groups: norms are not decayed.

    The fused kernel is used on every device that has one, the CPU included.
    """
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=fused
    )


def first_state(parameter: torch.Tensor) -> dict[str, Any]:
    """Return the state of a parameter before its first update.

    It is made here instead of at the first step, so that a checkpoint can be loaded into it.
    """
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
