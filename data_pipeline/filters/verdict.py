"""What a filter says about one document, and about a batch of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from data_pipeline.document import Documents, TextView


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


@dataclass
class Judgement:
    """The verdicts on a batch, row by row."""

    reasons: list[str | None]
    texts: dict[int, str] = field(default_factory=dict)  # row -> new text
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    abstained: Counter[str] = field(default_factory=Counter)  # rule -> documents
    removed_lines: Counter[str] = field(default_factory=Counter)  # rule -> lines


def judge_each(documents: Documents, scores: list[str], judge: Callable[[TextView], Verdict]) -> Judgement:
    """Judge a batch document by document; `scores` are the columns it gets, the same for every batch."""
    judgement = Judgement(reasons=[], scores={name: [] for name in scores})
    for row, view in enumerate(documents.views):
        verdict = judge(view)
        judgement.reasons.append(verdict.reason)
        judgement.abstained.update(verdict.abstained)
        judgement.removed_lines.update(verdict.removed_lines)
        if verdict.text is not None:
            judgement.texts[row] = verdict.text
        assert verdict.scores.keys() <= judgement.scores.keys()
        for name, column in judgement.scores.items():
            column.append(verdict.scores.get(name))
    return judgement
