"""Faults planted in DeepSpeed's engine, and those that are the same in both."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from llama_train.data.batches import MicroBatch
from llama_train.engine.deepspeed.engine import DeepSpeedEngine
from llama_train.engine.engine import Chunk
from llama_train.model.llama import IGNORE
from llama_train.parallel.layout import Layout


def lost_moments(engine: Any, layout: Layout) -> None:
    """Read nothing but weights from checkpoints."""
    load = engine.load_chunks

    def load_weights(chunks: Iterable[Chunk]) -> None:
        load(chunk for chunk in chunks if chunk.name.startswith("weights/"))

    engine.load_chunks = load_weights


def merged_groups(engine: Any, layout: Layout) -> None:
    """Give every parameter group the first one's weight decay."""
    groups = engine.optimizer.param_groups
    for group in groups:
        group["weight_decay"] = groups[0]["weight_decay"]


def _gradient_scale(engine: DeepSpeedEngine, layout: Layout) -> None:
    backward = engine.deepspeed.backward
    engine.deepspeed.backward = lambda loss, **named: backward(loss / layout.world_size, **named)


def _dropped_micro_batch(engine: DeepSpeedEngine, layout: Layout) -> None:
    """Give the last micro-batch no labels, after tokens were counted: its loss and gradients are zero."""
    if layout.data_rank != 0:
        return
    whole = engine._forward_backward

    def without_the_last(micro_batches: list[MicroBatch], divisor: int) -> torch.Tensor:
        dropped = replace(micro_batches[-1], labels=torch.full_like(micro_batches[-1].labels, IGNORE))
        return whole([*micro_batches[:-1], dropped], divisor)

    engine._forward_backward = without_the_last


def _local_divisor(engine: DeepSpeedEngine, layout: Layout) -> None:
    summed, step = engine._summed, engine.step
    first = [True]

    def own_count_first(value: Any) -> torch.Tensor:
        if first[0]:
            first[0] = False
            return torch.tensor(float(value) * layout.world_size, dtype=torch.float64, device=engine.device)
        return summed(value)

    def new_step(*arguments: Any, **named: Any) -> Any:
        first[0] = True
        return step(*arguments, **named)

    engine._summed = own_count_first
    engine.step = new_step


def _local_norm(engine: DeepSpeedEngine, layout: Layout) -> None:
    def own_norm() -> float:
        return sum(float(torch.linalg.vector_norm(chunk.tensor)) ** 2 for chunk in engine._gradient_chunks()) ** 0.5

    engine._gradient_norm = own_norm


def _stale_weights(engine: DeepSpeedEngine, layout: Layout) -> None:
    engine.held.publish = lambda: None


ZERO_PLANTS: dict[str, Callable[[DeepSpeedEngine, Layout], None]] = {
    "gradient_scale": _gradient_scale,
    "dropped_micro_batch": _dropped_micro_batch,
    "local_divisor": _local_divisor,
    "local_norm": _local_norm,
    "lost_moments": lost_moments,
    "merged_groups": merged_groups,
    "stale_weights": _stale_weights,
}
