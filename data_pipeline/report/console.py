"""What a person sees: a progress bar per phase on a terminal, one line per phase elsewhere, and a summary."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from data_pipeline.report.statistics import StageStatistics, total

TOP_REASONS = 3


def preset(console: Console, name: str, stages: list[str], departures: list[str]) -> None:
    """Print which stages run, and where the preset departs from its paper and why."""
    told = [f"{name}: {', '.join(stages)}"]
    if departures:
        told += [f"{name} departs from its paper:", *(f"- {departure}" for departure in departures)]
    for line in told:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def phase(console: Console, name: str, tasks: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of a phase; yields what to call with the number of tasks newly finished."""
    started = time.monotonic()
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=tasks)
        yield lambda count: progress.advance(bar, count)
    if not console.is_terminal:
        console.print(f"{name}: {tasks} partitions, {time.monotonic() - started:.1f} s", highlight=False)


def summary(console: Console, stages: list[StageStatistics], output: Path) -> None:
    """Print the funnel, the most frequent reasons, and where everything is."""
    table = Table(title="From raw text to shards", title_justify="left")
    table.add_column("stage")
    for name in ("documents in", "kept", "dropped", "kept MB"):
        table.add_column(name, justify="right")
    table.add_column("most frequent reasons", overflow="fold")
    for stage in stages:
        seen, kept = total(stage.seen), total(stage.kept)
        reasons = list(stage.reasons().items())
        told = [f"{reason.removeprefix(stage.stage + '.')} {tally[0]:,}" for reason, tally in reasons[:TOP_REASONS]]
        more = [f"and {len(reasons) - TOP_REASONS} more"] if len(reasons) > TOP_REASONS else []
        cells = (f"{seen[0]:,}", f"{kept[0]:,}", f"{seen[0] - kept[0]:,}", f"{kept[1] / 1e6:,.1f}")
        table.add_row(stage.stage, *cells, "\n".join(told + more))
    console.print(table)
    tokens = stages[-1].tokens
    for split in ("train", "validation"):
        number = sum(counts.get(split, 0) for counts in tokens.values())
        console.print(f"{split}: {number:,} tokens", highlight=False)
    console.print(f"shards: {output / 'shards.json'}", highlight=False, soft_wrap=True)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)
