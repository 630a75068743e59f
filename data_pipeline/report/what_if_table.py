"""Two funnels beside each other: as it was, and with other thresholds."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Step:
    """One stage of a funnel; documents and bytes are fractions where they are estimated."""

    stage: str
    seen: list[float]  # documents, bytes
    dropped: dict[str, list[float]]  # reason without the stage -> documents, bytes
    kept: list[float]
    basis: str  # exact, or what it is an estimate from


@dataclass(frozen=True)
class Funnel:
    """A sample's way through the stages."""

    documents: int
    steps: list[Step]


def show(console: Console, changes: dict[str, list[Any]], old: Funnel, new: Funnel, of: int) -> None:
    """Print what was changed, and per rule what it drops before and after.

    Args:
        of: documents of the corpus that the sample stands for; 0: not known yet.
    """
    for key, (before, after) in changes.items():
        console.print(f"pipeline.{key}: {before} -> {after}", highlight=False)
    share = f" of {of:,} ({old.documents / of:.2%})" if of else ""
    console.print(
        f"from the scores of {old.documents:,} documents{share}; all numbers are of this sample", highlight=False
    )
    table = Table()
    table.add_column("stage, rule", overflow="fold")
    for name in ("documents", "then", "change", "MB", "then", "change"):
        table.add_column(name, justify="right")
    table.add_column("how sure")
    for before, after in zip(old.steps, new.steps, strict=True):
        _row(table, f"[bold]{before.stage}[/] sees", before.seen, after.seen, after.basis)
        for reason in dict.fromkeys([*before.dropped, *after.dropped]):
            gone = [step.dropped.get(reason, [0.0, 0.0]) for step in (before, after)]
            if any(each[0] for each in gone):
                _row(table, f"  drops {reason}".rstrip(), *gone, "")
        table.add_section()
    _row(table, "[bold]kept[/]", old.steps[-1].kept, new.steps[-1].kept, new.steps[-1].basis)
    console.print(table)


def _row(table: Table, name: str, before: list[float], after: list[float], basis: str) -> None:
    cells = []
    for place, unit, digits in ((0, 1, 0), (1, 1e6, 2)):
        old, new = round(before[place] / unit, digits), round(after[place] / unit, digits)
        change = f"{new - old:+,.{digits}f}" if new != old else "="
        cells += [f"{old:,.{digits}f}", f"{new:,.{digits}f}", change]
    table.add_row(name, *cells, basis)
