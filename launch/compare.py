"""Several runs side by side: one table for the terminal, one page for people to share."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from llama_foundation.errors import RunError
from llama_foundation.files import publish_text
from llama_train.observe.charts import Chart, smooth
from llama_train.observe.metrics import history
from llama_train.observe.summary import final_loss

NOT_COMPARED = ("name", "output", "logging", "cluster", "stop_at_step")
"""Settings that say where a run is and what it writes, not what it computes."""
COLOURS = tuple(f"series-{number}" for number in range(1, 9))
DASHES = ((), (4, 1.5), (1.2, 1.2))
"""The best eight runs have a solid line, the next eight a dashed one, the next a dotted one; the others are grey."""


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    directory: Path
    settings: dict[str, Any]  # dotted name → value
    steps: np.ndarray
    tokens: np.ndarray  # seen after each step
    loss: np.ndarray  # nats per token
    validation: list[tuple[int, float]]  # (tokens, loss)
    tokens_per_second: float
    finished: bool

    @property
    def final_loss(self) -> float:
        return final_loss(self.loss)

    @property
    def validation_loss(self) -> float | None:
        return self.validation[-1][1] if self.validation else None


def read_outcome(run: Path) -> Outcome:
    """Read a run directory; one that has not begun has no steps."""
    try:
        settings = dict(_flat(OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))))
    except (OSError, ValueError, AttributeError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise RunError(f"{run / 'config.yaml'}: is no configuration of a run: {error}") from error
    metrics = run / "metrics.jsonl"
    records = history(metrics) if metrics.is_file() else []
    try:
        finished = bool(json.loads((run / "summary.json").read_text())["finished"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        finished = False
    return Outcome(
        directory=run,
        settings={name: value for name, value in settings.items() if name.split(".")[0] not in NOT_COMPARED},
        steps=np.array([record["step"] for record in records]),
        tokens=np.array([record["tokens"] for record in records], dtype=np.int64),
        loss=np.array([record["loss"] for record in records], dtype=np.float64),
        validation=[
            (record["tokens"], record["validation_loss"]) for record in records if record["validation_loss"] is not None
        ],
        tokens_per_second=float(np.median([record["tokens_per_second"] for record in records])) if records else 0.0,
        finished=finished,
    )


def changed(outcomes: list[Outcome]) -> list[str]:
    """Return the settings that are not the same in all runs, alphabetically."""
    names = sorted({name for outcome in outcomes for name in outcome.settings})
    return [name for name in names if len({str(outcome.settings.get(name)) for outcome in outcomes}) > 1]


def ranked(outcomes: list[Outcome]) -> tuple[str, list[Outcome]]:
    """Return by what the runs are ranked, and the runs, best first: by validation loss where there are any.

    Runs that are not finished come behind those that are, whatever their loss was on the way.
    """
    if any(outcome.validation_loss is not None for outcome in outcomes):
        return "validation loss", sorted(outcomes, key=lambda each: (not each.finished, _last(each.validation_loss)))
    return "loss", sorted(outcomes, key=lambda each: (not each.finished, _last(each.final_loss)))


def compare(runs: list[Path], page: Path, title: str) -> list[Outcome]:
    """Print the table of `runs`, write the page, return the runs, best first.

    Raises:
        RunError: there is nothing to compare.
    """
    if not runs:
        raise RunError(f"{title}: no run has begun, so there is nothing to compare")
    rule, outcomes = ranked([read_outcome(run) for run in runs])
    names = changed(outcomes)
    rows = [_row(outcome, names) for outcome in outcomes]
    heads = [*_short(names), "validation", "loss", "tokens", "tokens/s", "state"]
    table = Table(title=f"{title}, best first by {rule}")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < len(names) else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    publish_text(page, _page(title, rule, outcomes, names, heads, rows))
    print(page)
    return outcomes


def _row(outcome: Outcome, names: list[str]) -> list[str]:
    validation = outcome.validation_loss
    state = "finished" if outcome.finished else f"at step {outcome.steps[-1]}" if len(outcome.steps) else "not begun"
    return [
        *(_shown(outcome.settings.get(name, "-")) for name in names),
        "-" if validation is None else f"{validation:.4f}",
        f"{outcome.final_loss:.4f}" if len(outcome.loss) else "-",
        f"{outcome.tokens[-1]:,}" if len(outcome.tokens) else "-",
        f"{outcome.tokens_per_second:,.0f}",
        state,
    ]


def _shown(value: Any) -> str:
    """A setting for people; a search tries numbers of seventeen digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _page(title: str, rule: str, outcomes: list[Outcome], names: list[str], heads: list[str], rows: list) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    best = dict(zip(names, rows[0], strict=False))
    nothing = np.array([]), np.array([])
    validated = [
        tuple(map(np.array, zip(*each.validation, strict=True))) if len(each.validation) > 1 else nothing
        for each in outcomes
    ]
    return environment.get_template("comparison.html.jinja").render(
        title=title,
        rule=rule,
        best=best,
        best_run=outcomes[0].directory.name,
        heads=heads,
        rows=rows,
        styles=[_style(number) for number in range(len(rows))],
        loss=_chart("Training loss over tokens", [(each.tokens, _smoothed(each)) for each in outcomes]),
        validation=_chart("Validation loss over tokens", validated) if any(len(x) for x, _ in validated) else None,
        runs=[str(outcome.directory) for outcome in outcomes],
    )


def _chart(label: str, curves: list) -> Markup:
    """Draw the curves, the best last, on top; the axis leaves out their beginning, beside which all ends look alike."""
    chart = Chart(label, width=10.8, height=3.6)
    for number, (x, y) in reversed(list(enumerate(curves))):
        if len(x):
            colour, dashes = _style(number)
            chart.curve(x, y, colour, dashes=dashes, faint=colour == "muted")
    later = [y[x > x[-1] / 5] for x, y in curves[: (len(curves) + 1) // 2] if len(x)]
    if finite := [float(value) for y in later for value in y if math.isfinite(value)]:
        chart.up_to(max(finite) + 0.05 * (max(finite) - min(finite)) + 0.01)
    return Markup(chart.svg())


def _style(number: int) -> tuple[str, tuple[float, ...]]:
    """Return colour and dashes of the run of rank `number`, counted from 0."""
    again, colour = divmod(number, len(COLOURS))
    return (COLOURS[colour], DASHES[again]) if again < len(DASHES) else ("muted", ())


def _smoothed(outcome: Outcome) -> np.ndarray:
    return smooth(outcome.loss, max(len(outcome.loss) // 50, 1)) if len(outcome.loss) else outcome.loss


def _last(value: float | None) -> float:
    """Sort what is missing or not a number behind everything."""
    return math.inf if value is None or math.isnan(value) else value


def _short(names: list[str]) -> list[str]:
    """Leave out the groups of names where the last part alone says which."""
    ends = [name.rpartition(".")[2] for name in names]
    return [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
