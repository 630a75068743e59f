"""The cases of a user's own layout."""

from dataclasses import fields

from llama_train.config import LayoutConfig, PipelineSchedule
from llama_train.prove.case import AXES, BATCH_SIZE, Case, Variant, axes_name, part
from llama_train.prove.shrink import STEPS

_RESUMED_AT = 7
_V = (PipelineSchedule.zero_bubble_v, PipelineSchedule.dual_pipe_v)


def own_cases(layouts: list[LayoutConfig]) -> list[Case]:
    """Return the shrunk layouts as they are, one process in micro-batches, and a resumption of the first elsewhere."""
    cases = [Case("1 process, 8 micro-batches", (part(STEPS, {"micro_batch_size": 1}),))]
    for layout in layouts:
        settings = {f.name: getattr(layout, f.name) for f in fields(layout) if f.name != "micro_batch_size"}
        if all(settings[axis] == 1 for axis in AXES):
            continue
        variant = _with_rows(layout)
        cases.append(Case(axes_name(settings), (part(STEPS, settings, batch_size=variant.batch_size),), variant))
    if len(cases) > 1:
        first, variant = cases[1].parts[0].layout, cases[1].variant
        parts = (part(_RESUMED_AT, first), part(STEPS, {}, batch_size=variant.batch_size))
        cases.append(Case(f"{axes_name(first)} → 1 process", parts, variant))
    return cases


def _with_rows(layout: LayoutConfig) -> Variant:
    """Return a variant with as many rows as the schedule needs micro-batches: a V twice as many as others."""
    rows = layout.data_replicate * layout.data_shard * layout.pipeline
    if layout.pipeline > 1 and layout.pipeline_schedule in _V:
        rows *= 2
    return Variant() if rows <= BATCH_SIZE else Variant(f"batch of {rows}", data={"batch_size": rows})
