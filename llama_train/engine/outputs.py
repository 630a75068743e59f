"""The outputs of a model's layers, shown as they come."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llama_train.model.llama import Llama


@contextlib.contextmanager
def shown(model: Llama, look: Callable[[int, torch.Tensor], None] | None) -> Iterator[None]:
    """Show `look` the outputs of the model's layers.

    It wraps what calling a module calls, in front of compiled code (`nn.Module.compile` sets the same attribute) and of
    recomputation: hooks that come after compilation are not seen by it, and others would be called twice.
    """
    if look is None:
        yield
        return
    blocks = {int(layer): block for layer, block in model.model.layers.items()}
    before = {layer: block._compiled_call_impl for layer, block in blocks.items()}

    def showing(layer: int, call: Callable) -> Callable:
        def call_and_show(*arguments: Any, **named: Any) -> Any:
            output = call(*arguments, **named)
            look(layer, output.detach())
            return output

        return call_and_show

    try:
        for layer, block in blocks.items():
            block._compiled_call_impl = showing(layer, before[layer] or block._call_impl)
        yield
    finally:
        for layer, block in blocks.items():
            block._compiled_call_impl = before[layer]
