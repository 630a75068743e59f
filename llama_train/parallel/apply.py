"""In which order a model on the meta device becomes a sharded, checkpointed, compiled one."""

import functools

from torch.utils.checkpoint import checkpoint

from llama_train.config import ActivationCheckpointing, EngineConfig, Precision
from llama_train.model.llama import Llama
from llama_train.parallel.layout import Layout
from llama_train.parallel.shard import apply_fsdp


def parallelize(model: Llama, config: EngineConfig, layout: Layout, device_type: str) -> None:
    """Apply activation checkpointing, compilation and sharding to `model` in place, in this order.

    Compilation must see the checkpointed block, and FSDP2's gathering must stay outside of both.
    """
    if config.activation_checkpointing is ActivationCheckpointing.full:
        for block in model.blocks():
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    if config.compile:
        for block in model.blocks():
            block.compile()
    # One process needs no sharding, unless for FSDP2's bf16 compute copies of fp32 weights.
    if layout.world_size > 1 or config.precision is Precision.bf16:
        apply_fsdp(model, layout.data_mesh(device_type), config.precision, config.reshard_after_forward)
