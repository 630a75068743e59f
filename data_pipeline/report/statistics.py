"""Counts of what every stage saw, kept and dropped, with a few examples per reason.

All numbers are integers and merging is adding, so the totals do not depend on how the work was cut. Examples are the
ones with the smallest keyed hash of their record id, for the same reason.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 400
UNKNOWN_LANGUAGE = "unknown"

Tally = list[int]
"""[documents, bytes of text]"""
Tallies = dict[str, dict[str, Tally]]


@dataclass
class StageStatistics:
    """One stage over some documents; `merge` joins two of the same stage."""

    stage: str
    seen: Tallies = field(default_factory=dict)  # source -> language -> tally
    kept: Tallies = field(default_factory=dict)  # source -> language -> tally, bytes after edits
    dropped: Tallies = field(default_factory=dict)  # source -> reason -> tally
    abstained: dict[str, int] = field(default_factory=dict)  # rule -> documents
    edits: dict[str, int] = field(default_factory=dict)  # what was edited, by rule: lines removed, numbers masked
    noted: dict[str, int] = field(default_factory=dict)  # what is no loss -> how often: other records, repairs
    cluster_sizes: dict[str, int] = field(default_factory=dict)  # copies of one text -> clusters
    pairs: dict[str, int] = field(default_factory=dict)  # of near-duplicates: candidates, compared, verified
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> split -> tokens
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # reason -> smallest hashes first
    cpu_milliseconds: int = 0  # not reproducible, unlike everything above

    def count(self, table: Tallies, source: str, key: str | None, size: int, documents: int = 1) -> None:
        """Add `documents` of together `size` bytes to one cell of `seen`, `kept` or `dropped`."""
        tally = table.setdefault(source, {}).setdefault(key or UNKNOWN_LANGUAGE, [0, 0])
        tally[0] += documents
        tally[1] += size

    def example(self, reason: str, example: dict[str, Any]) -> None:
        """Offer an example (with its `hash` and `record_id`); only the smallest hashes stay."""
        kept = self.examples.setdefault(reason, [])
        kept.append(example)
        kept.sort(key=_example_order)
        del kept[EXAMPLES_PER_REASON:]

    def wants_example(self, reason: str, hash_: int) -> bool:
        """Whether an example of this hash would stay."""
        kept = self.examples.get(reason, [])
        return len(kept) < EXAMPLES_PER_REASON or hash_ <= kept[-1]["hash"]

    def merge(self, other: "StageStatistics") -> None:
        assert self.stage == other.stage
        for mine, theirs in ((self.seen, other.seen), (self.kept, other.kept), (self.dropped, other.dropped)):
            for source, row in theirs.items():
                for key, (documents, size) in row.items():
                    self.count(mine, source, key, size, documents)
        for mine, theirs in (
            (self.abstained, other.abstained),
            (self.edits, other.edits),
            (self.noted, other.noted),
            (self.cluster_sizes, other.cluster_sizes),
            (self.pairs, other.pairs),
        ):
            add(mine, theirs)
        for source, splits in other.tokens.items():
            add(self.tokens.setdefault(source, {}), splits)
        for reason, examples in other.examples.items():
            for example in examples:
                self.example(reason, example)
        self.cpu_milliseconds += other.cpu_milliseconds

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StageStatistics":
        return cls(**value)

    def reasons(self) -> dict[str, Tally]:
        """Return reason -> tally over all sources, the most frequent first."""
        totals: dict[str, Tally] = {}
        for row in self.dropped.values():
            for reason, (documents, size) in row.items():
                tally = totals.setdefault(reason, [0, 0])
                tally[0] += documents
                tally[1] += size
        return dict(sorted(totals.items(), key=lambda item: (-item[1][0], item[0])))


def total(table: Tallies) -> Tally:
    """Return the sum of all cells."""
    cells = [tally for row in table.values() for tally in row.values()]
    return [sum(tally[0] for tally in cells), sum(tally[1] for tally in cells)]


def by_source(table: Tallies) -> dict[str, Tally]:
    """Return source -> tally."""
    return {source: total({source: row}) for source, row in sorted(table.items())}


def by_key(table: Tallies) -> dict[str, Tally]:
    """Return language (or reason) -> tally."""
    keys = sorted({key for row in table.values() for key in row})
    return {key: total({source: {key: row[key]} for source, row in table.items() if key in row}) for key in keys}


def add(mine: dict[str, int], theirs: dict[str, int]) -> None:
    """Add the counts of `theirs` to `mine`."""
    for key, number in theirs.items():
        mine[key] = mine.get(key, 0) + number


def _example_order(example: dict[str, Any]) -> tuple[int, str]:
    return example["hash"], example["record_id"]
