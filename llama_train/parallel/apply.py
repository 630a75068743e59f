"""In which order a model on the meta device becomes a sharded, checkpointed, compiled one."""

from llama_train.config import EngineConfig, Precision
from llama_train.model.llama import Llama
from llama_train.parallel.activations import checkpoint_activations
from llama_train.parallel.attention_backend import choose_attention
from llama_train.parallel.float8 import apply_float8
from llama_train.parallel.layout import Layout
from llama_train.parallel.shard import apply_fsdp


def parallelize(model: Llama, config: EngineConfig, layout: Layout, device_type: str) -> None:
    """Apply the switches of `config`, then sharding, to `model` in place, in this order.

    Compilation must see the checkpointed block of float8 layers, and FSDP2's gathering must stay outside of both.
    """
    model.model.make_mask = choose_attention(config, model.model.config, device_type, speaks=layout.rank == 0)
    model.loss_chunk = config.loss_chunk
    apply_float8(model, config)
    checkpoint_activations(model, config)
    if config.compile:
        for block in model.blocks():
            block.compile()
    # One process needs no sharding, unless for FSDP2's bf16 compute copies of fp32 weights.
    if layout.world_size > 1 or config.precision is Precision.bf16:
        apply_fsdp(model, layout.data_mesh(device_type), config.precision, config.reshard_after_forward)
