"""What a filter says about one document, and about a batch of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipeline.document import Documents, TextView
from data_pipeline.filters.measure import Measurement


@dataclass
class Verdict:
    """One document's way through the rules of one filter, in their order; the first that fails names the drop."""

    filter: str
    reason: str | None = None  # None: keep
    scores: dict[str, float] = field(default_factory=dict)
    abstained: list[str] = field(default_factory=list)
    removed_lines: Counter[str] = field(default_factory=Counter)
    text: str | None = None  # None: not edited

    def drop(self, reason: str) -> "Verdict":
        self.reason = f"{self.filter}.{reason}"
        return self

    def score(self, name: str, value: float) -> float:
        self.scores[f"{self.filter}.{name}"] = value
        return value

    def abstain(self, rule: str) -> None:
        self.abstained.append(f"{self.filter}.{rule}")

    def remove_line(self, reason: str) -> None:
        self.removed_lines[f"{self.filter}.{reason}"] += 1


def measure_each(documents: Documents, scores: list[str], judge: Callable[[TextView], Verdict]) -> Measurement:
    """Measure a batch document by document; `scores` are the columns it gets, the same for every batch."""
    measurement = Measurement({name.split(".", 1)[1]: np.full(len(documents), np.nan) for name in scores})
    texts = [view.text for view in documents.views]
    edited = False
    for row, view in enumerate(documents.views):
        verdict = judge(view)
        if verdict.reason:
            reason = verdict.reason.split(".", 1)[1]
            measurement.drops.setdefault(reason, np.zeros(len(documents), bool))[row] = True
        for name, value in verdict.scores.items():
            measurement.scores[name.split(".", 1)[1]][row] = value
        for name, count in verdict.removed_lines.items():
            short = name.split(".", 1)[1]
            measurement.counts[short] = measurement.counts.get(short, 0) + count
        if verdict.text is not None:
            texts[row], edited = verdict.text, True
    if edited:
        measurement.texts = pa.array(texts, pa.large_string())
    return measurement
