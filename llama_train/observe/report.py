"""report.html: what became of a run, in one file that needs nothing else."""

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf

from llama_foundation.errors import RunError
from llama_foundation.files import publish_text
from llama_train.observe.charts import Chart, short, smooth
from llama_train.observe.console import duration
from llama_train.observe.heatmap import heat_map, layer_gradients, layer_outputs
from llama_train.observe.ledger import PARTS, Ledger, ledger
from llama_train.observe.metrics import (
    Statistics,
    StepRecord,
    Validation,
    read,
    superseding,
    superseding_statistics,
)

_PARTS = {"compute": "series-1", "data": "series-2", "checkpoint": "series-3", "other": "grid"}
_LEDGER_COLOURS = _PARTS | {
    "start": "series-4",
    "restart": "series-5",
    "recomputed": "series-6",
    "stalled": "muted",
    "stopped": "grid",
}


@dataclass(frozen=True)
class Figure:
    """One number at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart with its heading."""

    title: str
    note: str
    svg: Markup
    wide: bool = False


def write_report(run_directory: Path) -> Path:
    """Write `run_directory/report.html` from metrics.jsonl, and config.yaml and summary.json where they exist.

    Raises:
        DataError: metrics.jsonl is missing or damaged.
        RunError: no step has finished.
    """
    metrics = run_directory / "metrics.jsonl"
    steps, validations, events = superseding(read(metrics))
    if not steps:
        raise RunError(f"{metrics}: no step has finished, so there is nothing to report")
    config_file, summary_file = run_directory / "config.yaml", run_directory / "summary.json"
    config = OmegaConf.load(config_file) if config_file.exists() else OmegaConf.create()
    total = config.get("steps") or steps[-1].step
    summary = OmegaConf.load(summary_file) if summary_file.exists() else {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    spent = ledger(metrics)
    page = environment.get_template("report.html.jinja").render(
        name=config.get("name") or run_directory.resolve().name,
        model=OmegaConf.select(config, "model.name") or "",
        finished=steps[-1].step >= total,
        last=steps[-1].step,
        total=total,
        figures=_figures(metrics, steps, validations, total),
        panels=_panels(steps, validations) + _layers(superseding_statistics(read(metrics))),
        split=_split(steps),
        wall_time=_wall_time(spent),
        start=spent.start,
        events=events,
        config=config_file.read_text("utf-8") if config_file.exists() else "",
        files={name: value for name, value in summary.items() if isinstance(value, str)},
    )
    path = run_directory / "report.html"
    publish_text(path, page)
    return path


def _figures(metrics: Path, steps: list[StepRecord], validations: list[Validation], total: int) -> list[Figure]:
    first, last = steps[0], steps[-1]
    figures = [Figure("Loss", _number(last.loss, 3), f"{_number(first.loss, 3)} at step {first.step}")]
    if validations:
        newest = validations[-1]
        figures.append(Figure("Validation loss", _number(newest.validation_loss, 3), f"after step {newest.step:,}"))
    seconds = sum(step.seconds for step in steps)
    figures += [
        Figure("Steps", f"{last.step:,}", f"of {total:,}" + (f", attempt {last.attempt}" if last.attempt > 1 else "")),
        Figure("Tokens", short(last.tokens), f"{last.batch_tokens:,} in the last step"),
        Figure(
            "Tokens/s per device",
            f"{statistics.median(step.tokens_per_second_per_device for step in steps):,.0f}",
            f"{statistics.median(step.tokens_per_second for step in steps):,.0f} over all (medians)",
        ),
    ]
    utilized = [step.mfu for step in steps if step.mfu is not None]
    if utilized:
        figures.append(Figure("MFU", f"{statistics.median(utilized):.1%}", f"median; FLOPs by {last.mfu_formula}"))
    figures += [
        Figure("Time in steps", duration(seconds), f"{seconds / len(steps):,.2f} s a step"),
        Figure("Goodput", f"{ledger(metrics).goodput:.1%}", "of the wall time of all attempts, in updates that last"),
        Figure("Memory", _bytes(max(step.memory_bytes for step in steps)), "peak of rank 0"),
    ]
    return figures


def _panels(steps: list[StepRecord], validations: list[Validation]) -> list[Panel]:
    x = np.array([step.step for step in steps])
    resumed_at = [b.step for a, b in itertools.pairwise(steps) if a.attempt != b.attempt]
    panels = [_loss(x, steps, validations, resumed_at)]

    def simple(title: str, note: str, name: str, colour: str, scale: float = 1.0, **options: bool) -> None:
        values = _column(steps, name) * scale
        if not np.isfinite(values).any():
            return
        chart = Chart(title, resumed_at=resumed_at, **options)
        chart.curve(x, values, colour)
        if not chart.logarithmic:
            chart.from_zero()
        panels.append(Panel(title, note, Markup(chart.svg())))

    simple("Learning rate", "", "lr", "series-4")
    norms = _column(steps, "grad_norm")
    spread = np.isfinite(norms).any() and norms.min() > 0 and norms.max() > 20 * np.median(norms)
    simple("Gradient norm", "before clipping", "grad_norm", "series-2", logarithmic=bool(spread))
    simple("Tokens/s per device", "", "tokens_per_second_per_device", "series-1")
    simple("MFU", f"FLOPs by {steps[-1].mfu_formula}", "mfu", "series-3", percent=True)
    panels.append(_time(x, steps, resumed_at))
    simple("Memory", "GiB, peak of rank 0", "memory_bytes", "series-3", scale=2.0**-30)
    return panels


def _loss(x: np.ndarray, steps: list[StepRecord], validations: list[Validation], resumed_at: list[int]) -> Panel:
    loss = _column(steps, "loss")
    chart = Chart("Loss over steps", width=11, height=3.9, resumed_at=resumed_at)
    span = len(loss) // 100
    note = "nats per token, over optimizer steps like every curve here"
    if resumed_at:
        note += "; dashed lines: resumed"
    if span:
        chart.curve(x, loss, "series-1", faint=True)
        chart.curve(x, smooth(loss, span), "series-1", name=f"train, mean of {2 * span + 1} steps")
    else:
        chart.curve(x, loss, "series-1", name="train")
    held_out = [v for v in validations if v.validation_loss is not None]
    if held_out:
        values = np.array([v.validation_loss for v in held_out])
        chart.points(np.array([v.step for v in held_out]), values, "series-2", "validation")
    return Panel("Loss", note, Markup(chart.svg()), wide=True)


def _time(x: np.ndarray, steps: list[StepRecord], resumed_at: list[int]) -> Panel:
    chart = Chart("Seconds of a step by what it was spent on", resumed_at=resumed_at)
    chart.stack(x, _seconds(steps), list(_PARTS.values()))
    chart.from_zero()
    return Panel("Seconds per step", "where the time goes", Markup(chart.svg()))


def _layers(records: list[Statistics]) -> list[Panel]:
    """Pictures of the statistics, where there are any."""
    records = [record for record in records if len(record.layers) == len(records[0].layers)]
    if not records:
        return []
    steps = [record.step for record in records]
    note = "over steps; layer 0 at the bottom, logarithmic"
    outputs = heat_map("RMS of each layer's output over steps", steps, layer_outputs(records))
    gradients = heat_map("Gradient RMS of each layer over steps", steps, layer_gradients(records))
    return [
        Panel("RMS of layer outputs", note, outputs),
        Panel("Gradient RMS by layer", f"the largest of its parameters, {note}", gradients),
    ]


def _seconds(steps: list[StepRecord]) -> dict[str, np.ndarray]:
    """Seconds of each step by part, in the order of `_PARTS`."""
    parts = {part: _column(steps, f"{part}_seconds") for part in _PARTS if part != "other"}
    parts["other"] = np.maximum(_column(steps, "seconds") - sum(parts.values()), 0)
    return parts


def _split(steps: list[StepRecord]) -> list[tuple[str, str, float]]:
    """Share of the whole time by part: (name, colour, percent)."""
    totals = {part: float(values.sum()) for part, values in _seconds(steps).items()}
    everything = sum(totals.values()) or 1.0
    return [(part, colour, 100 * totals[part] / everything) for part, colour in _PARTS.items()]


def _wall_time(spent: Ledger) -> list[tuple[str, str, float, float, str]]:
    """Wall time over all attempts: (part, colour, seconds, percent, what it holds)."""
    total = sum(spent.seconds.values()) or 1.0
    return [
        (part, _LEDGER_COLOURS[part], seconds, 100 * seconds / total, PARTS[part])
        for part, seconds in spent.seconds.items()
        if seconds
    ]


def _column(steps: list[StepRecord], name: str) -> np.ndarray:
    values = [getattr(step, name) for step in steps]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
