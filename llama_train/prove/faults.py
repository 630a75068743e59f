"""Faults that a proof must notice, planted on purpose to show that it does."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from llama_train.engine import native
from llama_train.engine.engine import Engine
from llama_train.engine.native import NativeEngine
from llama_train.model.llama import IGNORE, Llama
from llama_train.parallel import summands
from llama_train.parallel.layout import Layout
from llama_train.prove.stretch import FAULTS, ZERO_FAULTS
from llama_train.prove.zero_faults import ZERO_PLANTS, lost_moments, merged_groups


def plant(fault: str | None, engine: Engine, layout: Layout) -> None:
    """Break `engine`, and in this process its modules, as `FAULTS` says, where it has what is to be broken."""
    if fault is None:
        return
    assert FAULTS.keys() == _PLANTS.keys() | ZERO_PLANTS.keys() and set(ZERO_FAULTS) == ZERO_PLANTS.keys()
    plants: dict[str, Callable[[Any, Layout], None]] = _PLANTS if isinstance(engine, NativeEngine) else ZERO_PLANTS
    if fault in plants:
        plants[fault](engine, layout)


def _gradient_scale(engine: NativeEngine, layout: Layout) -> None:
    for module in _sharded(engine):
        module.set_gradient_divide_factor(float(layout.shard_world * layout.data_replicate))


def _missed_reduction(engine: NativeEngine, layout: Layout) -> None:
    if layout.tensor > 1:
        every = summands.summed_parameters

        def all_but_one(model: Llama, layout: Layout) -> Iterator[nn.Parameter]:
            found = iter(every(model, layout))
            next(found)
            yield from found

        summands.summed_parameters = all_but_one
    elif _sharded(engine):
        _sharded(engine)[-1].set_custom_reduce_scatter(_OwnSummand())


class _OwnSummand:
    """A reduce-scatter that forgets the other ranks."""

    def allocate(self, size: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        output_tensor.copy_(input_tensor.chunk(group.size())[group.rank()])


def _wrong_position(engine: NativeEngine, layout: Layout) -> None:
    if layout.place["context"] != 1:
        return
    right = native.model_inputs

    def shifted(*arguments: Any) -> dict[str, torch.Tensor]:
        inputs = right(*arguments)
        return inputs | {"positions": inputs["positions"] + 1}

    native.model_inputs = shifted


def _dropped_micro_batch(engine: NativeEngine, layout: Layout) -> None:
    """Give the last micro-batch no labels, after tokens were counted: its loss and gradients are zero."""
    if layout.data_rank != 0:
        return
    where: Any = engine if engine.pipeline is None else engine.pipeline
    method = "_forward_backward" if engine.pipeline is None else "forward_backward"
    whole = getattr(where, method)

    def without_the_last(inputs: list[dict[str, torch.Tensor]], divisor: int) -> torch.Tensor:
        dropped = inputs[-1] | {"labels": torch.full_like(inputs[-1]["labels"], IGNORE)}
        return whole([*inputs[:-1], dropped], divisor)

    setattr(where, method, without_the_last)


def _stale_tied_embedding(engine: NativeEngine, layout: Layout) -> None:
    summands._tied_ends = lambda models, groups: None


def _local_divisor(engine: NativeEngine, layout: Layout) -> None:
    summed, step = engine._summed, engine.step
    first = [True]

    def own_count_first(value: Any, counts: bool) -> torch.Tensor:
        if first[0]:
            first[0] = False
            return torch.tensor(float(value) * layout.data_world, dtype=torch.float64, device=engine.device)
        return summed(value, counts)

    def new_step(*arguments: Any, **named: Any) -> Any:
        first[0] = True
        return step(*arguments, **named)

    engine._summed = own_count_first
    engine.step = new_step


def _local_norm(engine: NativeEngine, layout: Layout) -> None:
    def own_norm() -> torch.Tensor:
        parts = [torch.linalg.vector_norm(chunk.tensor) ** 2 for chunk in engine._gradient_chunks() if chunk.owner]
        return torch.stack(parts).sum().sqrt() if parts else torch.ones((), dtype=torch.float64)

    engine._gradient_norm = own_norm


def _sharded(engine: NativeEngine) -> list[FSDPModule]:
    return [module for model in engine.models.values() for module in model.modules() if isinstance(module, FSDPModule)]


_PLANTS: dict[str, Callable[[NativeEngine, Layout], None]] = {
    "gradient_scale": _gradient_scale,
    "missed_reduction": _missed_reduction,
    "wrong_position": _wrong_position,
    "dropped_micro_batch": _dropped_micro_batch,
    "stale_tied_embedding": _stale_tied_embedding,
    "local_divisor": _local_divisor,
    "local_norm": _local_norm,
    "lost_moments": lost_moments,
    "merged_groups": merged_groups,
}
