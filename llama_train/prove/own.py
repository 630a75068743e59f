"""The cases of a user's own layout."""

from dataclasses import fields

from llama_train.config import LayoutConfig
from llama_train.prove.case import AXES, Case, axes_name, part
from llama_train.prove.shrink import STEPS

_RESUMED_AT = 7


def own_cases(layouts: list[LayoutConfig]) -> list[Case]:
    """Return the shrunk layouts as they are, one process in micro-batches, and a resumption of the first elsewhere."""
    cases = [Case("1 process, 8 micro-batches", (part(STEPS, {"micro_batch_size": 1}),))]
    for layout in layouts:
        settings = {f.name: getattr(layout, f.name) for f in fields(layout) if f.name != "micro_batch_size"}
        if all(settings[axis] == 1 for axis in AXES):
            continue
        cases.append(Case(axes_name(settings), (part(STEPS, settings),)))
    if len(cases) > 1:
        first = cases[1].parts[0].layout
        parts = (part(_RESUMED_AT, first), part(STEPS, {}))
        cases.append(Case(f"{axes_name(first)} → 1 process", parts))
    return cases
