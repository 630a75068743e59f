"""What a proof runs: cases, and the variants of the configuration that they are run with."""

from dataclasses import dataclass, field
from typing import Any

from llama_train.config import LayoutConfig

BATCH_SIZE = 8  # sequences: divides over 1, 2, 4 and 8 ranks

AXES = {"pipeline": "pp", "data_replicate": "replicate", "data_shard": "shard", "context": "cp", "tensor": "tp"}
"""The layout's axes, and how a table calls them."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A change of the configuration that changes what is computed, so that it needs a reference of its own."""

    name: str = "plain"
    model: Settings = field(default_factory=dict)
    data: Settings = field(default_factory=dict)
    masked_rows: int = 0  # this many first rows of every batch have no label
    masked_tokens: int = 0  # this many first tokens of every row have no label

    @property
    def batch_size(self) -> int:
        return self.data.get("batch_size", BATCH_SIZE)


@dataclass(frozen=True)
class Part:
    """The steps of a case up to `last`, under one layout."""

    last: int
    layout: Settings
    engine: Settings

    @property
    def world(self) -> int:
        size = 1
        for axis in AXES:
            size *= self.layout.get(axis, 1)
        return size


@dataclass(frozen=True)
class Case:
    """One way of running the same steps: parts, each resumed from the checkpoint of the one before."""

    name: str
    parts: tuple[Part, ...]
    variant: Variant = Variant()

    @property
    def world(self) -> int:
        return max(part.world for part in self.parts)

    def uses(self, axis: str) -> bool:
        """Whether the first part has more than one rank along `axis`."""
        return self.parts[0].layout.get(axis, 1) > 1


def part(last: int, layout: Settings, engine: Settings | None = None, batch_size: int = BATCH_SIZE) -> Part:
    """Return a part with `micro_batch_size` filled in: several micro-batches, and enough for every schedule."""
    layout = {"data_shard": 1, **layout}
    if "micro_batch_size" not in layout:
        rows = batch_size // (layout["data_shard"] * layout.get("data_replicate", 1))
        wanted = 2 * layout.get("pipeline", 1)
        layout["micro_batch_size"] = max(rows // wanted, 1)
    return Part(last, layout, engine or {})


def axes_name(layout: Settings) -> str:
    """Return what a table calls a layout: "pp2 shard2 tp2"."""
    used = [f"{short}{layout[axis]}" for axis, short in AXES.items() if layout.get(axis, 1) > 1]
    schedule = layout.get("pipeline_schedule", LayoutConfig.pipeline_schedule)
    if layout.get("pipeline", 1) > 1 and schedule is not LayoutConfig.pipeline_schedule:
        used.append(schedule.name)
    method = layout.get("context_method", LayoutConfig.context_method)
    if layout.get("context", 1) > 1 and method is not LayoutConfig.context_method:
        used.append(method.name)
    return " ".join(used) or "1 process"


def fault_applies(fault: str, case: Case, tied: bool) -> bool:
    """Whether `fault` changes anything in `case`.

    Args:
        tied: whether the case's model has tied embeddings.
    """
    data = case.uses("data_shard") or case.uses("data_replicate")
    match fault:
        case "gradient_scale":
            return data or case.uses("context")
        case "missed_reduction":
            return case.uses("tensor") or case.uses("data_shard") or case.uses("context")
        case "wrong_position":
            return case.uses("context")
        case "dropped_micro_batch":
            return True
        case "stale_tied_embedding":
            return case.uses("pipeline") and tied
        case "local_divisor":
            return data
        case "local_norm":
            return case.parts[0].world > 1
        case "lost_moments":
            return len(case.parts) > 1
    raise AssertionError(fault)
