"""In which order a model on the meta device becomes a sharded, checkpointed, compiled one."""

from llama_train.config import EngineConfig, Precision
from llama_train.model.llama import Llama
from llama_train.parallel.activations import checkpoint_activations
from llama_train.parallel.attention_backend import choose_attention
from llama_train.parallel.context import apply_context_parallel
from llama_train.parallel.float8 import apply_float8
from llama_train.parallel.layout import Groups, Layout
from llama_train.parallel.shard import apply_fsdp
from llama_train.parallel.tensor import apply_tensor_parallel


def parallelize(model: Llama, config: EngineConfig, layout: Layout, groups: Groups, device_type: str) -> None:
    """Apply the layout and the switches of `config` to `model`, a whole one or a pipeline stage, in place.

    Compilation must see the checkpointed block of float8 layers with its collectives, and FSDP2's gathering must stay
    outside of all.
    """
    model.model.make_mask = choose_attention(config, model.model.config, device_type, speaks=layout.rank == 0)
    model.loss_chunk = config.loss_chunk
    apply_tensor_parallel(model, layout, groups.tensor)
    apply_context_parallel(model, layout, groups.context)
    apply_float8(model, config)
    checkpoint_activations(model, config)
    if config.compile:
        for block in model.blocks():
            block.compile()
    # One process needs no sharding, unless for FSDP2's bf16 compute copies of fp32 weights.
    if layout.shard_world * layout.data_replicate > 1 or config.precision is Precision.bf16:
        apply_fsdp(model, groups.shard_mesh, config.precision, config.reshard_after_forward)
