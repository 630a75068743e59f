"""Small pictures as inline SVG; they take their colours from the page, light or dark."""

from html import escape
from math import ceil, floor, inf, isfinite, log10

from data_pipeline.read.rows import source_label
from data_pipeline.report.histogram import upper_edge
from data_pipeline.report.statistics import Tally

MOST_SOURCES = 7
"""A chart gives this many sources a colour of their own; the others share one."""

_WIDTH = 960
_COLUMNS = 80
_LABEL, _AMOUNT = 170, 90  # beside the bars of the funnel


def funnel(steps: list[tuple[str, dict[str, Tally]]]) -> str:
    """Return bars of megabytes per source, one bar per step.

    Args:
        steps: (name, source -> tally), the first of them with every source.
    """
    largest = sorted(steps[0][1], key=lambda source: -steps[0][1][source][1])
    series = [(source_label(source), [source]) for source in largest[:MOST_SOURCES]]
    if largest[MOST_SOURCES:]:
        series.append((f"{len(largest) - MOST_SOURCES} more", largest[MOST_SOURCES:]))
    widest = max(sum(tally[1] for tally in tallies.values()) for _, tallies in steps) or 1
    scale = (_WIDTH - _LABEL - _AMOUNT) / widest
    parts, y = [], 0
    for name, tallies in steps:
        x = float(_LABEL)
        parts.append(f'<text x="{_LABEL - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        for colour, (label, members) in enumerate(series):
            size = sum(tallies.get(source, [0, 0])[1] for source in members)
            told = f"<title>{escape(label)}: {size / 1e6:,.1f} MB</title>"
            width = size * scale
            parts.append(_rectangle(x, y + 3, width, 16, f"var(--series-{colour})", told) if width else "")
            x += width
        amount = sum(tally[1] for tally in tallies.values()) / 1e6
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 15}" class="soft">{amount:,.1f} MB</text>')
        y += 24
    for number, (label, _) in enumerate(series):
        x, row = 10 + number % 4 * (_WIDTH - 10) / 4, y + 14 + number // 4 * 18
        parts.append(_rectangle(x, row, 10, 10, f"var(--series-{number})"))
        shown = label if len(label) <= 22 else label[:21] + "…"
        parts.append(f'<text x="{x + 15:.0f}" y="{row + 9}" class="soft">{escape(shown)}</text>')
    return _svg(y + 20 + 18 * ((len(series) + 3) // 4), parts, "megabytes of each source after every stage")


def histogram(bins: dict[str, int], minimum: float = -inf, maximum: float = inf) -> str:
    """Return the distribution of a score with the cuts of a rule; what lies beyond them has the colour of loss.

    Heights are square roots, so that rare values stay visible beside frequent ones.
    """
    if not bins:
        return ""
    counts = {float(edge): count for edge, count in bins.items()}
    cuts = [cut for cut in (minimum, maximum) if isfinite(cut)]
    whole = max(counts) > 1 and all(edge == int(edge) for edge in counts) and max(counts) - min(counts) <= 60
    if whole:
        spans = {edge: (edge - 0.5, edge + 0.5) for edge in counts}
        minimum, maximum = minimum - 0.5, maximum + 0.5
        cuts = [cut + (-0.5 if cut < minimum + 1 else 0.5) for cut in cuts]
    else:
        share = max(counts) <= 1  # nothing lies in the bin above 1 but 1 itself
        spans = {edge: (edge, edge + 0.01 if share else upper_edge(edge)) for edge in counts}
    low = min([start for start, _ in spans.values()] + cuts)
    high = max([end for _, end in spans.values()] + cuts)
    wide = not whole and max(abs(low), abs(high)) > 30
    place = _squeezed if wide else float
    left, right, columns = _frame(low, high, spans, whole, wide)
    heights = [0.0] * columns
    for edge, (start, end) in spans.items():
        first, last = ((place(value) - left) / (right - left) * columns for value in (start, end))
        for column in range(int(first), min(int(last), columns - 1) + 1):
            overlap = min(last, column + 1) - max(first, column)
            heights[column] += counts[edge] * max(overlap, 0) / (last - first)
    tallest = max(heights) ** 0.5 or 1
    parts = []
    for column, height in enumerate(heights):
        if not height:
            continue
        middle = left + (column + 0.5) / columns * (right - left)
        beyond = middle < place(minimum) or middle > place(maximum)
        tall = max(height**0.5 / tallest * 96, 1)
        x = column / columns * _WIDTH
        colour = "var(--lost)" if beyond else "var(--series-0)"
        parts.append(_rectangle(x, 104 - tall, _WIDTH / columns - 0.6, tall, colour))
    parts.append(f'<line x1="0" x2="{_WIDTH}" y1="104.5" y2="104.5" class="axis"/>')
    for value in _ticks(low, high, wide):
        x = (place(value) - left) / (right - left) * _WIDTH
        anchor = "start" if x < 20 else "end" if x > _WIDTH - 20 else "middle"
        parts.append(f'<text x="{x:.1f}" y="119" text-anchor="{anchor}" class="soft">{_short(value)}</text>')
    for cut in cuts:
        x = (place(cut) - left) / (right - left) * _WIDTH
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="108" class="cut"/>')
    return _svg(124, parts, "distribution of the score")


def _frame(
    low: float, high: float, spans: dict[float, tuple[float, float]], whole: bool, wide: bool
) -> tuple[float, float, int]:
    """Return where the picture begins and ends, and its columns, whose edges are edges of bins where they can be."""
    if whole:
        return low, high, 3 * int(high - low + 1)
    if wide:
        left, right = _squeezed(low), _squeezed(high)
        return left, right + 0.02 * (right - left), _COLUMNS
    bin_width = min(end - start for start, end in spans.values())
    step = bin_width * ceil((high - low) / bin_width / _COLUMNS + 1e-9)
    first, last = floor(low / step - 1e-9), ceil(high / step + 1e-9)
    return first * step, last * step, last - first


def _squeezed(value: float) -> float:
    """Linear up to 1, by powers of ten beyond."""
    if abs(value) <= 1 or not isfinite(value):
        return value
    return (1 + log10(abs(value))) * (1 if value > 0 else -1)


def _ticks(low: float, high: float, wide: bool) -> list[float]:
    if wide:
        powers = [float(10**power) for power in range(19)]
        return [value for value in (*(-each for each in powers), 0.0, *powers) if low <= value <= high]
    step = 10.0 ** floor(log10(high - low))
    step = next(step * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / (step * factor) <= 8)
    first = ceil(low / step)
    values = [round(number * step, 10) for number in range(first, first + 12)]
    return [value for value in values if low <= value <= high]


def _short(value: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _rectangle(x: float, y: float, width: float, height: float, colour: str, inside: str = "") -> str:
    shape = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect {shape} style="fill: {colour}">{inside}</rect>'


def _svg(height: float, parts: list[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
