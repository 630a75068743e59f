"""Activation checkpointing (Chen et al. 2016): keep less in the forward pass, compute it again in the backward pass."""

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llama_train.config import ActivationCheckpointing, EngineConfig
from llama_train.model.llama import Block, Llama

_KEPT_NAMES = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "torch_attn::_varlen_attn",
)
"""The operations whose results `selective` keeps: where the time of a block is."""


def checkpoint_activations(model: Llama, config: EngineConfig) -> None:
    """Make the blocks of `model` compute again in the backward pass what `config` says they do not keep."""
    match config.activation_checkpointing:
        case ActivationCheckpointing.none:
            pass
        case ActivationCheckpointing.full:
            for block in model.blocks():
                _wrap(block)
        case ActivationCheckpointing.selective:
            for block in model.blocks():
                _wrap(block, context_fn=_keep_expensive)
        case ActivationCheckpointing.every_n:
            for number, block in enumerate(model.blocks()):
                if number % config.activation_checkpointing_every == 0:
                    _wrap(block)


def _wrap(block: Block, **settings: Any) -> None:
    # Nothing in a block draws random numbers.
    block.forward = functools.partial(
        checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **settings
    )


def _keep_expensive() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    kept = operation is torch.ops.higher_order.flex_attention or (
        getattr(operation, "_schema", None) and (operation._schema.name in _KEPT_NAMES)
    )
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
