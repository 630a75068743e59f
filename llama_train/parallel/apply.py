"""In which order a model on the meta device becomes a sharded, checkpointed, compiled one."""

from llama_train.config import EngineConfig, ReduceGradients, Reshard
from llama_train.model.llama import Llama
from llama_train.parallel.activations import checkpoint_activations
from llama_train.parallel.attention_backend import choose_attention
from llama_train.parallel.context import apply_context_parallel
from llama_train.parallel.float8 import apply_float8
from llama_train.parallel.layout import Groups, Layout, uses_fsdp
from llama_train.parallel.overlap import overlap_tensor_parallel
from llama_train.parallel.shard import apply_fsdp
from llama_train.parallel.stages import splits_backward
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
        overlap_tensor_parallel(config, groups.tensor)
        for block in model.blocks():
            block.compile()
    if uses_fsdp(config, layout):
        apply_fsdp(model, groups.shard_mesh, config.precision, reshards(config, layout), config.offload)


def reshards(config: EngineConfig, layout: Layout) -> bool:
    """Whether gathered weights are freed between forward and backward."""
    if config.reshard_after_forward is Reshard.auto:
        return not splits_backward(layout)  # FSDP2 would lose gradients under these schedules (torch 2.13)
    return config.reshard_after_forward is Reshard.always


def reduces_every_micro_batch(config: EngineConfig, layout: Layout) -> bool:
    """Whether gradients are reduced after every micro-batch, or once after all."""
    if config.reduce_gradients is ReduceGradients.auto:
        return not splits_backward(layout)
    return config.reduce_gradients is ReduceGradients.every_micro_batch
