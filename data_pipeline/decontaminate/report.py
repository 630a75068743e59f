"""How many examples of each benchmark the corpus holds, before and after the stage."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from data_pipeline.decontaminate.benchmarks import Index
from data_pipeline.decontaminate.matches import longest, matched_words
from data_pipeline.decontaminate.settings import Rules

CLEAN, DIRTY = 0.2, 0.8
"""Touvron et al. 2023, Llama 2, A.6: below 20 % of its words an example is clean, from 80 % on it is dirty."""


def benchmark_counts(index: Index, covered: list[pa.Table], rules: Rules) -> dict[str, dict[str, Any]]:
    """Return for each benchmark, in whole numbers:

    examples, words; too_short (fewer words than an n-gram: they cannot be found); and `before` and `after` the stage,
    over all documents together: contaminated (a share of at least `rules.min_share` of the words is in a match), clean
    and dirty (Llama 2's), matched_words.
    """
    sizes = np.diff(index.offsets)
    benchmarks = np.array(index.benchmarks)
    counts: dict[str, dict[str, Any]] = {}
    for name in sorted(set(index.benchmarks)):
        own = sizes[benchmarks == name]
        short = int((own < rules.ngram).sum())
        counts[name] = {"examples": len(own), "words": int(own.sum()), "too_short": short}
    for when in ("before", "after"):
        parts = [table.filter(pc.equal(table["when"], when)) for table in covered]
        empty = [np.zeros(0, np.int64)]
        place, length = longest(
            empty + [part["place"].to_numpy() for part in parts], empty + [part["length"].to_numpy() for part in parts]
        )
        matched = matched_words(place, length, index)
        share = matched / np.maximum(sizes, 1)
        contaminated = (matched > 0) & (matched >= rules.min_share * sizes)
        for name, told in counts.items():
            own = benchmarks == name
            told[when] = {
                "contaminated": int(contaminated[own].sum()),
                "clean": int((share[own] < CLEAN).sum()),
                "dirty": int((share[own] >= DIRTY).sum()),
                "matched_words": int(matched[own].sum()),
            }
    return counts


def show(console: Console, counts: dict[str, dict[str, Any]], rules: Rules) -> None:
    """Print one line per benchmark."""
    title = f"Examples in the corpus: {rules.ngram} words in a row"
    if rules.mismatches:
        title += f", then up to {rules.mismatches} that differ"
    title += f", {rules.min_share:.0%} of an example" if rules.min_share else ""
    table = Table(title=title, title_justify="left")
    table.add_column("benchmark")
    for heading in ("examples", "too short", "contaminated", "after", "dirty", "after"):
        table.add_column(heading, justify="right")
    for name, told in counts.items():
        cells = [f"{told[key]:,}" for key in ("examples", "too_short")]
        for key in ("contaminated", "dirty"):
            cells += [f"{told[when][key]:,} ({told[when][key] / told['examples']:.1%})" for when in ("before", "after")]
        table.add_row(name, *cells)
    console.print(table)
