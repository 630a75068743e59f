"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019), its state there from the start."""

from collections.abc import Iterable

import torch

from llama_train.config import OptimizerConfig
from llama_train.model.names import decays


def build_adamw(parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Build the optimizer over (canonical name, parameter) pairs; norms are not decayed.

    The fused kernel is used on every device that has one, the CPU included. State tensors are made here instead of at
    the first step, so that a checkpoint can be loaded into them.
    """
    named = list(parameters)
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )
    for _, parameter in named:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer
