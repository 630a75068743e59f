"""FSDP2: every rank keeps a slice of the rows of every parameter and gathers a block when it computes it."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from llama_train.config import Precision
from llama_train.model.llama import Llama


def apply_fsdp(
    model: Llama, mesh: DeviceMesh, precision: Precision, reshard_after_forward: bool, offload: bool = False
) -> None:
    """Shard `model` in place, one group per block and one for embedding, norm and head.

    Gradients are summed over the ranks, not averaged: the engine divides each loss by the global count of valid
    tokens before its backward pass, so the sum is the gradient of the mean over the whole batch.

    Args:
        offload: keep the slices of weights and gradients, and so the optimizer's state, in host memory.
    """
    where = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    policy = MixedPrecisionPolicy()
    if precision is Precision.bf16:
        # Inputs of a block are cast by the block itself where it should be: rotary angles must stay in float32.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks():
        fully_shard(
            block, mesh=mesh, mp_policy=policy, offload_policy=where, reshard_after_forward=reshard_after_forward
        )
    # The root group holds lm_head, which the loss needs right after the forward pass: resharding it would only
    # mean gathering it again.
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=where, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
