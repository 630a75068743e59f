"""report.html: what went in, what was dropped and why. One file, no network, light and dark."""

import io
import re
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from data_pipeline.config import DataPipelineConfig
from data_pipeline.report.statistics import StageStatistics, Tally, by_key, by_source, total
from data_pipeline.write import NAME as SHARDS
from llama_foundation.compose import dump
from llama_foundation.files import publish_text

MOST_SOURCES = 7
"""A chart gives this many sources a colour of their own; the others share one."""

_INK = "#010203"
"""Stands for the text colour in matplotlib's SVG, and is replaced by the page's own."""
_SERIES = [f"#0a0b{number:02x}" for number in range(MOST_SOURCES + 1)]


def write_report(path: Path, config: DataPipelineConfig, stages: list[StageStatistics]) -> None:
    """Write the report of a run: its stages in their order, from reading to the shards."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "megabytes": _megabytes, "percent": _percent, "width": _width}
    filters = [stage for stage in stages if stage.stage != SHARDS]
    page = environment.get_template("report.html.j2").render(
        config=config,
        settings=dump(config),
        seen=total(stages[0].seen),
        kept=total(filters[-1].kept),
        tokens={split: _tokens(stages[-1], split) for split in ("train", "validation")},
        stages=[_stage(stage) for stage in filters],
        sources=_sources(filters, stages[-1]),
        languages=_languages(filters),
        funnel=_funnel(filters),
        reasons=_reasons(filters),
    )
    publish_text(path, page)


def _stage(stage: StageStatistics) -> dict[str, Any]:
    seen, kept = total(stage.seen), total(stage.kept)
    dropped = sum(tally[0] for tally in stage.reasons().values())
    seconds = stage.cpu_milliseconds / 1000
    return {
        "name": stage.stage,
        "seen": seen,
        "kept": kept,
        "dropped": dropped,
        "edited_bytes": seen[1] - sum(tally[1] for tally in stage.reasons().values()) - kept[1],
        "abstained": sorted(stage.abstained.items(), key=lambda item: (-item[1], item[0])),
        "edits": sorted(stage.edits.items(), key=lambda item: (-item[1], item[0])),
        "clusters": sorted((int(size), count) for size, count in stage.cluster_sizes.items()),
        "seconds": seconds,
        "speed": seen[1] / 1e6 / seconds if seconds else None,
    }


def _sources(filters: list[StageStatistics], shards: StageStatistics) -> list[dict[str, Any]]:
    """Return one row per source: what every stage left of it."""
    seen = by_source(filters[0].seen)
    rows = []
    for source in sorted(seen, key=lambda source: -seen[source][1]):
        left = [by_source(stage.kept).get(source, [0, 0])[0] for stage in filters]
        rows.append(
            {
                "name": source,
                "seen": seen[source],
                "left": left,
                "kept": by_source(filters[-1].kept).get(source, [0, 0]),
                "tokens": sum(shards.tokens.get(source, {}).values()),
            }
        )
    return rows


def _languages(filters: list[StageStatistics]) -> list[dict[str, Any]]:
    seen, kept = by_key(filters[0].seen), by_key(filters[-1].kept)
    order = sorted(seen, key=lambda language: -seen[language][1])
    return [{"name": name, "seen": seen[name], "kept": kept.get(name, [0, 0])} for name in order]


def _reasons(filters: list[StageStatistics]) -> list[dict[str, Any]]:
    rows = []
    for stage in filters:
        documents = total(stage.seen)[0]
        for reason, tally in stage.reasons().items():
            share = tally[0] / documents
            rows.append({"name": reason, "tally": tally, "share": share, "examples": stage.examples.get(reason, [])})
    largest = max((row["share"] for row in rows), default=1)
    return [{**row, "bar": row["share"] / largest} for row in rows]


def _tokens(shards: StageStatistics, split: str) -> int:
    return sum(counts.get(split, 0) for counts in shards.tokens.values())


def _funnel(filters: list[StageStatistics]) -> str:
    """Return an SVG: megabytes of each source after every stage."""
    steps = [("input", by_source(filters[0].seen)), *((stage.stage, by_source(stage.kept)) for stage in filters)]
    largest = sorted(steps[0][1], key=lambda source: -steps[0][1][source][1])
    named = largest[:MOST_SOURCES]
    series = [(source, [source]) for source in named]
    if largest[MOST_SOURCES:]:
        series.append((f"{len(largest) - MOST_SOURCES} more", largest[MOST_SOURCES:]))
    figure = Figure(figsize=(8.6, 0.9 + 0.42 * len(steps)))
    axes = figure.add_subplot()
    left = [0.0] * len(steps)
    labels = [name for name, _ in steps]
    for colour, (label, members) in zip(_SERIES, series, strict=False):
        sizes = [sum(tallies.get(source, [0, 0])[1] for source in members) / 1e6 for _, tallies in steps]
        axes.barh(labels, sizes, left=left, height=0.62, color=colour, label=label)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, end in enumerate(left):
        axes.text(end, row, f"  {end:,.1f} MB", va="center", color=_INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.14 or 1)
    axes.xaxis.set_visible(False)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="lower left", ncols=4, frameon=False, fontsize=9, labelcolor=_INK
    )
    figure.subplots_adjust(left=0.19, right=0.99, top=0.99, bottom=0.5 / figure.get_figheight() + 0.06)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """Return the figure as inline SVG in the page's fonts and colours."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llama-data"}):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
    svg = re.sub(r"font: [^;\"]*?([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(_INK, "currentColor")
    for number, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _percent(part: Tally | float, whole: Tally | float = 1) -> str:
    part, whole = (value[0] if isinstance(value, list) else value for value in (part, whole))
    if not whole:
        return "-"
    percent = 100 * part / whole
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def _width(part: Tally | float, whole: Tally | float = 1) -> str:
    """Return the width of a bar in CSS."""
    part, whole = (value[0] if isinstance(value, list) else value for value in (part, whole))
    return f"{100 * part / whole:.2f}%" if whole else "0"
