"""Faults that a proof must notice, planted on purpose to show that it does."""

from torch.distributed.fsdp import FSDPModule

from llama_train.distributed import World
from llama_train.engine.engine import Engine
from llama_train.prove.stretch import FAULTS


def plant(fault: str | None, engine: Engine, world: World) -> None:
    """Break `engine` in the named way.

    gradient_scale: FSDP2 averages gradients over the ranks where their sum is the gradient.
    """
    if fault is None:
        return
    assert fault in FAULTS, fault
    for module in engine.model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(float(world.size))
