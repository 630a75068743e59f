"""Layers over steps as a small picture: one SVG rectangle per cell, its strength the logarithm of the value."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from llama_train.observe.charts import short
from llama_train.observe.metrics import Statistics

MOST_COLUMNS, MOST_ROWS = 60, 32
"""More steps or layers than this are merged, so that the picture of a long run of a deep model stays below 100 KB."""

_LEFT, _TOP, _WIDTH, _HEIGHT, _FAINTEST = 34, 4, 350, 140, 0.06
"""Points of the picture; and how strong the cell of the smallest value is, so that it differs from an empty one."""


def layer_outputs(records: Sequence[Statistics]) -> np.ndarray:
    """Return the RMS of the outputs [layer, step]."""
    return _table(records, lambda record: [_value(layer["outputs_rms"]) for layer in record.layers])


def layer_gradients(records: Sequence[Statistics]) -> np.ndarray:
    """Return the largest gradient RMS of any parameter of a layer [layer, step]."""

    def largest(record: Statistics) -> list[float]:
        of_layer: list[list[float]] = [[] for _ in record.layers]
        for name, numbers in record.parameters.items():
            if name.startswith("model.layers."):
                of_layer[int(name.split(".")[2])].append(_value(numbers["gradients_rms"]))
        return [float(np.max(values)) for values in of_layer]  # NaN if one of them is

    return _table(records, largest)


def heat_map(label: str, steps: Sequence[int], values: np.ndarray) -> Markup:
    """Draw `values` [layer, step]; what is not finite has a colour of its own.

    Args:
        label: what it shows, for people who cannot see it.
        steps: of the columns.
    """
    positive = np.isfinite(values) & (values > 0)
    low, high = (math.log(f(values[positive])) for f in (np.min, np.max)) if positive.any() else (0.0, 0.0)
    merged = merge(np.where(np.isfinite(values), values, np.nan), MOST_ROWS, MOST_COLUMNS)
    rows, columns = merged.shape
    width, height = _WIDTH / columns, _HEIGHT / rows
    cells = []
    for row in range(rows):
        for column in range(columns):
            value = merged[row, column]
            colour, strength = "series-2", 1.0
            if not math.isnan(value):
                place = (math.log(value) - low) / (high - low) if value > 0 and high > low else float(value > 0)
                colour, strength = "series-1", _FAINTEST + (1 - _FAINTEST) * min(max(place, 0.0), 1.0)
            x, y = _LEFT + column * width, _TOP + _HEIGHT - (row + 1) * height
            cells.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="var(--{colour})" fill-opacity="{strength:.2f}"/>'
            )
    bottom, right = _TOP + _HEIGHT + 13, _LEFT + _WIDTH
    texts = [
        (_LEFT - 6, _TOP + 9, "end", str(len(values) - 1)),
        (_LEFT - 6, _TOP + _HEIGHT, "end", "0"),
        (_LEFT, bottom, "start", short(steps[0])),
        (right, bottom, "end", short(steps[-1])),
        ((_LEFT + right) / 2, bottom, "middle", f"faint {short(math.exp(low))} · strong {short(math.exp(high))}"),
    ]
    labels = "".join(
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="9.5px" fill="var(--muted)">{escape(text)}</text>'
        for x, y, anchor, text in texts
    )
    box = f"0 0 {right + 5} {bottom + 4}"
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(cells)}{labels}</svg>')


def merge(values: np.ndarray, most_rows: int, most_columns: int) -> np.ndarray:
    """Make a table smaller by the largest value of each rectangle of neighbours; one NaN makes the whole NaN."""
    for axis, most in enumerate((most_rows, most_columns)):
        if values.shape[axis] > most:
            starts = np.arange(most) * values.shape[axis] // most
            values = np.maximum.reduceat(values, starts, axis=axis)
    return values


def _table(records: Sequence[Statistics], column: Callable[[Statistics], list[float]]) -> np.ndarray:
    return np.array([column(record) for record in records], dtype=np.float64).T


def _value(number: float | None) -> float:
    return math.nan if number is None else number
