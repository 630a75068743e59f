"""What a proof runs: cases, and the variants of the configuration that they are run with."""

from dataclasses import dataclass, field, fields
from typing import Any

from llama_train.config import EngineConfig, EngineName, LayoutConfig
from llama_train.engine.deepspeed.checks import DEEPSPEED_SETTINGS
from llama_train.prove.stretch import ZERO_FAULTS

BATCH_SIZE = 8  # sequences: divides over 1, 2, 4 and 8 ranks

AXES = {"pipeline": "pp", "data_replicate": "replicate", "data_shard": "shard", "context": "cp", "tensor": "tp"}
"""The layout's axes, and how a table calls them."""

Settings = dict[str, Any]

NATIVE: Settings = {
    "name": EngineName.native,
    **{each.name: each.default for each in fields(EngineConfig) if each.name in DEEPSPEED_SETTINGS},
}
"""The engine's settings of a part that runs natively, whatever the configuration has chosen."""


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

    @property
    def zero(self) -> bool:
        """Whether it says that DeepSpeed runs it."""
        return self.engine.get("name") is EngineName.deepspeed

    @property
    def engine_name(self) -> str:
        """What a table calls its engine."""
        return f"ZeRO-{self.engine['zero_stage']}" if self.zero else EngineName.native.value

    def uses(self, axis: str) -> bool:
        """Whether it has more than one rank along `axis`."""
        return self.layout.get(axis, 1) > 1


@dataclass(frozen=True)
class Case:
    """One way of running the same steps: parts, each resumed from the checkpoint of the one before."""

    name: str
    parts: tuple[Part, ...]
    variant: Variant = Variant()
    gradient_steps: tuple[int, ...] = ()  # whose gradients are kept besides those of each part's first step

    @property
    def world(self) -> int:
        return max(part.world for part in self.parts)

    @property
    def engine_name(self) -> str:
        """The engines of its parts, once where they are the same."""
        names = [part.engine_name for part in self.parts]
        return names[0] if len(set(names)) == 1 else " → ".join(names)

    @property
    def first_steps(self) -> list[int]:
        """The first step of every part."""
        return [0, *(part.last for part in self.parts[:-1])]

    def uses(self, axis: str) -> bool:
        """Whether the first part has more than one rank along `axis`."""
        return self.parts[0].uses(axis)


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
    if fault == "lost_moments":
        return len(case.parts) > 1
    if fault == "stale_weights":
        return any(part.zero for part in case.parts[1:])
    return any(_changes(fault, part, tied) for part in case.parts if fault in ZERO_FAULTS or not part.zero)


def _changes(fault: str, part: Part, tied: bool) -> bool:
    data = part.uses("data_shard") or part.uses("data_replicate")
    match fault:
        case "gradient_scale":
            return data or part.uses("context")
        case "missed_reduction":
            return part.uses("tensor") or part.uses("data_shard") or part.uses("context")
        case "wrong_position":
            return part.uses("context")
        case "dropped_micro_batch" | "merged_groups":
            return True
        case "stale_tied_embedding":
            return part.uses("pipeline") and tied
        case "local_divisor":
            return data
        case "local_norm":
            return part.world > 1
    raise AssertionError(fault)
