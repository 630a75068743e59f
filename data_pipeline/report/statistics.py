"""Counts of what every stage saw, kept and dropped, with a few examples and the distribution of every score.

All numbers are integers and merging is adding, so the totals do not depend on how the work was cut. What cannot be
added is bounded by taking the smallest of a keyed hash, or of a distance to a threshold, for the same reason.
"""

from bisect import insort
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipeline.report.mask import mask

EXAMPLES_PER_REASON = 3
PROBLEMS_PER_REASON = 20
"""Examples of a row that could not be read: each says where it is, which is what one looks for."""

EXAMPLE_CHARACTERS = 400
MASKED_CHARACTERS = 600
"""An example is masked at this length and cut afterwards, so that no half of an address is left at its end."""

HOST_SAMPLE = 1000
"""Documents whose hosts are kept per stage and outcome, those with the smallest keyed hash: a share p of all documents
is found with a standard error of sqrt(p (1 - p) / 1000), and exactly where there are no more documents than these."""

UNKNOWN_LANGUAGE = "unknown"
NO_LICENSE = "none stated"
OPT_OUT = "shards.opt_out"
"""Note of documents in the shards that state an opt-out."""

READ = "read"

Tally = list[int]
"""[documents, bytes of text]"""
Tallies = dict[str, dict[str, Tally]]
Examples = dict[str, list[dict[str, Any]]]


@dataclass
class StageStatistics:
    """One stage over some documents; `merge` joins two of the same stage."""

    stage: str
    seen: Tallies = field(default_factory=dict)  # source -> language -> tally
    kept: Tallies = field(default_factory=dict)  # source -> language -> tally, bytes after edits
    dropped: Tallies = field(default_factory=dict)  # source -> reason -> tally
    failed: dict[str, Tally] = field(default_factory=dict)  # reason -> tally of all beyond its cut, by whatever dropped
    abstained: dict[str, int] = field(default_factory=dict)  # rule -> documents
    edits: dict[str, int] = field(default_factory=dict)  # what was edited, by rule: lines removed, numbers masked
    noted: dict[str, int] = field(default_factory=dict)  # what is no loss -> how often: other records, repairs
    cluster_sizes: dict[str, int] = field(default_factory=dict)  # copies of one text -> clusters
    pairs: dict[str, int] = field(default_factory=dict)  # of near-duplicates: candidates, compared, verified
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)  # score -> lower edge of a bin -> documents
    licenses: dict[str, Tally] = field(default_factory=dict)  # license of kept documents -> tally
    urls: dict[str, int] = field(default_factory=dict)  # kept, dropped -> documents with a URL
    hosts: dict[str, list[list]] = field(default_factory=dict)  # kept, dropped -> [[hash, host]], smallest hashes
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> split -> tokens
    examples: Examples = field(default_factory=dict)  # reason -> dropped documents, smallest hashes first
    kept_examples: Examples = field(default_factory=dict)  # the stage -> kept documents, smallest hashes first
    near_dropped: Examples = field(default_factory=dict)  # reason -> dropped documents nearest to its cut
    near_kept: Examples = field(default_factory=dict)  # reason -> kept documents nearest to its cut
    cpu_milliseconds: int = 0  # not reproducible, unlike everything above

    def count(self, table: Tallies, source: str, key: str | None, size: int, documents: int = 1) -> None:
        """Add `documents` of together `size` bytes to one cell of `seen`, `kept` or `dropped`."""
        add_tally(table.setdefault(source, {}), key or UNKNOWN_LANGUAGE, documents, size)

    def example(self, reason: str, example: dict[str, Any], into: str = "examples") -> None:
        """Offer an example (with its `hash` and `record_id`); personal data in its text is masked first.

        Only the smallest by (`distance`, `hash`) stay.

        Args:
            into: the field that collects it: examples, kept_examples, near_dropped or near_kept.
        """
        text = example.get("text", "")
        self._insert(into, reason, {**example, "text": mask(text[:MASKED_CHARACTERS])[:EXAMPLE_CHARACTERS]})

    def wants_example(self, reason: str, hash_: int, distance: float = 0, into: str = "examples") -> bool:
        """Whether an example of this distance and hash would stay."""
        kept = getattr(self, into).get(reason, [])
        return len(kept) < self._room(into) or (distance, hash_) <= _example_order(kept[-1])[:2]

    def merge(self, other: "StageStatistics") -> None:
        assert self.stage == other.stage
        for mine, theirs in ((self.seen, other.seen), (self.kept, other.kept), (self.dropped, other.dropped)):
            for source, row in theirs.items():
                for key, (documents, size) in row.items():
                    self.count(mine, source, key, size, documents)
        for mine, theirs in ((self.failed, other.failed), (self.licenses, other.licenses)):
            for key, (documents, size) in theirs.items():
                add_tally(mine, key, documents, size)
        for mine, theirs in (
            (self.abstained, other.abstained),
            (self.edits, other.edits),
            (self.noted, other.noted),
            (self.urls, other.urls),
            (self.cluster_sizes, other.cluster_sizes),
            (self.pairs, other.pairs),
        ):
            add(mine, theirs)
        for mine, theirs in ((self.histograms, other.histograms), (self.tokens, other.tokens)):
            for key, counts in theirs.items():
                add(mine.setdefault(key, {}), counts)
        for outcome, hosts in other.hosts.items():
            self.sample_hosts(outcome, hosts)
        for into in ("examples", "kept_examples", "near_dropped", "near_kept"):
            for reason, examples in getattr(other, into).items():
                for example in examples:
                    self._insert(into, reason, example)
        self.cpu_milliseconds += other.cpu_milliseconds

    def sample_hosts(self, outcome: str, hosts: list[list]) -> None:
        """Offer [hash, host] of documents that were kept or dropped; only the smallest hashes stay."""
        if hosts:
            self.hosts[outcome] = sorted(self.hosts.get(outcome, []) + hosts)[:HOST_SAMPLE]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StageStatistics":
        """Take back what `to_json` gave.

        Raises:
            TypeError: it is something else.
        """
        theirs = cls(**value)
        if not isinstance(theirs.stage, str):
            raise TypeError(f"stage {theirs.stage!r}")
        made = cls(theirs.stage)
        try:
            made.merge(theirs)  # what this cannot add up, nothing can
        except (AttributeError, LookupError, ValueError) as error:
            raise TypeError(f"no statistics of {made.stage}: {error}") from error
        return made

    def reasons(self) -> dict[str, Tally]:
        """Return reason -> tally over all sources, the most frequent first."""
        totals: dict[str, Tally] = {}
        for row in self.dropped.values():
            for reason, (documents, size) in row.items():
                add_tally(totals, reason, documents, size)
        return dict(sorted(totals.items(), key=lambda item: (-item[1][0], item[0])))

    def _insert(self, into: str, reason: str, example: dict[str, Any]) -> None:
        kept = getattr(self, into).setdefault(reason, [])
        insort(kept, example, key=_example_order)
        del kept[self._room(into) :]

    def _room(self, into: str) -> int:
        return PROBLEMS_PER_REASON if self.stage == READ and into == "examples" else EXAMPLES_PER_REASON


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


def add_tally(table: dict[str, Tally], key: str, documents: int, size: int) -> None:
    """Add documents and bytes to one tally of `table`."""
    tally = table.setdefault(key, [0, 0])
    tally[0] += documents
    tally[1] += size


def _example_order(example: dict[str, Any]) -> tuple[float, int, str]:
    return example.get("distance", 0), example["hash"], example["record_id"]
