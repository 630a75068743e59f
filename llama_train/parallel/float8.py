"""The blocks' matrix multiplications in float8 (Micikevicius et al. 2022), through torchao."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from llama_foundation.errors import ConfigError
from llama_train.config import EngineConfig, Float8, ModelConfig

if TYPE_CHECKING:
    from torch import nn

    from llama_train.model.llama import Llama

MULTIPLE = 16
"""torch._scaled_mm takes matrices whose sides are multiples of this."""


def check_float8(config: EngineConfig, model: ModelConfig, device: str) -> None:
    """Refuse float8 where it cannot run.

    Args:
        device: `cluster.device`: auto, cpu or cuda.

    Raises:
        ConfigError: no CUDA device, one of another compute capability than 9.0, no torchao, or sizes that do not fit.
    """
    if config.float8 is Float8.none:
        return
    import torch

    asked = f"engine.float8={config.float8.name}"
    if device == "cpu" or not torch.cuda.is_available():
        raise ConfigError(f"{asked} needs a CUDA device of compute capability 9.0 (H100, H200); use engine.float8=none")
    if torch.cuda.get_device_capability() != (9, 0):
        major, minor = torch.cuda.get_device_capability()
        raise ConfigError(
            f"{asked} needs compute capability 9.0 (H100, H200); {torch.cuda.get_device_name()} has {major}.{minor}; "
            "use engine.float8=none"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(f"{asked} needs torchao; install llama-train[float8], or use engine.float8=none")
    keys = model.kv_heads * model.head_dim
    for what, size in (("hidden_size", model.hidden_size), ("ffn_size", model.ffn_size), ("kv_heads", keys)):
        if size % MULTIPLE:
            raise ConfigError(
                f"{asked}: model.{what} gives matrices of {size} columns, which is no multiple of {MULTIPLE}; "
                "use engine.float8=none"
            )


def apply_float8(model: Llama, config: EngineConfig) -> None:
    """Replace the linear layers of the blocks, not the head, by torchao's, in place and with the same weights."""
    if config.float8 is Float8.none:
        return
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = Float8LinearConfig.from_recipe_name(config.float8.name)
    convert_to_float8_training(model.model.layers, config=recipe, module_filter_fn=_is_linear)


def _is_linear(module: nn.Module, name: str) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)
