"""What `llama-data check-dedup` shows: a table, the S-curve, and both as one HTML file without network."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from data_pipeline.plant import s_curve
from llama_foundation.files import publish_text

if TYPE_CHECKING:
    from data_pipeline.check_dedup import Check

_BAR = 40  # characters
_WIDTH, _HEIGHT, _MARGIN = 560, 320, 44

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #bbb; --page: #fff; --line: #2456a6; --dot: #b3451e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #555; --page: #161616; --line: #7fb0ff; --dot: #ff9c73 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 50rem;
  margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; font-weight: normal }
th { border-bottom: 1px solid var(--faint) }
svg text { fill: var(--ink); font-size: 12px } .axis { stroke: var(--faint) }
.curve { fill: none; stroke: var(--line); stroke-width: 2 } .found { fill: var(--dot) } .least { stroke: var(--dot);
  stroke-dasharray: 4 3 }
"""


def rows(check: "Check") -> tuple[list[str], list[list[str]]]:
    """Return the headings and cells of the table: one row per rate."""
    stages = list(check.rates[0].found)
    headings = ["words edited", "copies", "Jaccard", *(["expected"] if check.bands else []), *stages, "words left"]
    cells = []
    for rate in check.rates:
        expected = [] if rate.expected is None else [f"{rate.expected:.1%}"]
        found = [f"{rate.found[stage] / rate.copies:.1%}" for stage in stages]
        left = f"{rate.words_left / max(rate.words, 1):.1%}"
        cells.append([f"{rate.rate:.1%}", f"{rate.copies:,}", f"{rate.jaccard:.3f}", *expected, *found, left])
    return headings, cells


def verdict(check: "Check") -> str:
    """Return the line on precision."""
    return (
        f"{check.dropped:,} of {check.documents:,} documents dropped as copies, {len(check.wrong):,} of them without a "
        f"planted copy or a document of Jaccard similarity {check.min_jaccard:g}: precision {check.precision:.2%}"
    )


def show(console: Console, check: "Check") -> None:
    """Print the table, the precision and, with MinHash among the stages, the S-curve."""
    headings, cells = rows(check)
    table = Table(title="Planted copies found, after each stage", title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in cells:
        table.add_row(*row)
    console.print(table)
    console.print(verdict(check), highlight=False, soft_wrap=True)
    if check.bands:
        console.print(f"Jaccard  candidates with {check.bands} bands of {check.rows} rows", highlight=False)
        for step in range(6, 21):
            chance = s_curve(step / 20, check.bands, check.rows)
            note = "  not verified: below min_jaccard" if step / 20 < check.min_jaccard else ""
            console.print(f"   {step / 20:.2f}  {chance:6.1%} {'█' * round(_BAR * chance)}{note}", highlight=False)


def write(path: Path, check: "Check") -> None:
    """Write the same as HTML."""
    headings, cells = rows(check)
    head = "".join(f"<th>{escape(each)}</th>" for each in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in cells)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Deduplication check</title><style>{_STYLE}'
        "</style><h1>Deduplication check</h1><p>Copies with a known share of edited words were planted in a sample. "
        "The columns of stages say which share of them had lost one of the pair when the stage was done.</p>"
        f"<table><tr>{head}</tr>{body}</table><p>{escape(verdict(check))}</p>"
        f"{_svg(check) if check.bands else ''}</html>"
    )
    publish_text(path, page + "\n")


def _svg(check: "Check") -> str:
    """Return the S-curve, and what the last stage that drops copies found, as inline SVG."""

    def place(similarity: float, share: float) -> tuple[float, float]:
        return (
            round(_MARGIN + similarity * (_WIDTH - 2 * _MARGIN), 1),
            round(_HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN), 1),
        )

    points = " ".join(
        "{},{}".format(*place(step / 100, s_curve(step / 100, check.bands, check.rows))) for step in range(101)
    )
    left, bottom = place(0, 0)
    right, top = place(1, 1)
    dots = ""
    for rate in check.rates:
        x, y = place(rate.jaccard, rate.found["minhash_dedup"] / rate.copies)
        dots += f'<circle class="found" cx="{x}" cy="{y}" r="4"><title>{rate.rate:.1%} edited</title></circle>'
    least = place(check.min_jaccard, 0)[0]
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}"><title>S-curve</title>'
        f'<path class="axis" fill="none" d="M{left},{top}V{bottom}H{right}"/>'
        f'<line class="least" x1="{least}" x2="{least}" y1="{top}" y2="{bottom}"/>'
        f'<polyline class="curve" points="{points}"/>{dots}'
        f'<text x="{left}" y="{bottom + 16}">0</text><text x="{right - 6}" y="{bottom + 16}">1</text>'
        f'<text x="{(left + right) / 2 - 60}" y="{bottom + 32}">Jaccard similarity</text>'
        f'<text x="{least + 4}" y="{top + 12}">min_jaccard {check.min_jaccard:g}</text>'
        f'<text x="{left}" y="{top - 10}">line: expected with {check.bands} bands of {check.rows} rows; '
        "dots: found</text></svg>"
    )
