"""Where the wall time of a run went, over all its attempts.

Inside a process time is measured by a clock that only goes forward; between two processes it is the difference of
their machines' clocks, and nothing if that is negative.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llama_train.observe.metrics import Beginning, Ending, Record, StepRecord, read

PARTS = {
    "compute": "updates that last: forward, backward, optimizer",
    "data": "waiting for batches of those",
    "checkpoint": "the loop waiting for checkpoints",
    "other": "validation, records, looking inside of steps",
    "start": "the first process, until its loop",
    "restart": "later processes, until their loop, and waiting for them after an error",
    "recomputed": "steps that were lost and done again",
    "stalled": "from the last record of a process that failed to its end, or to the next process if it was killed",
    "stopped": "between a process that ended as asked and the next",
}
"""Part → what it holds. `stopped` is no fault's, and goodput leaves it out."""


@dataclass(frozen=True)
class Ledger:
    """Seconds by part, in the order of `PARTS`; of a start, the median over all processes, by what it is spent on."""

    seconds: dict[str, float]
    attempts: int
    start: dict[str, float] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """The share of the time that the run was meant to train in which it made updates that last."""
        meant = sum(seconds for part, seconds in self.seconds.items() if part != "stopped")
        return self.seconds["compute"] / meant if meant else 0.0

    def describe(self) -> str:
        """Return one line for people."""
        total = sum(self.seconds.values()) or 1.0
        shares = ", ".join(f"{part} {seconds / total:.1%}" for part, seconds in self.seconds.items() if seconds)
        times = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        told = f"goodput {self.goodput:.1%} over {times}, {total:,.0f} s: {shares}"
        if not self.start:
            return told
        split = ", ".join(f"{what} {seconds:.1f}" for what, seconds in self.start.items() if seconds >= 0.05)
        return f"{told}; a start takes {sum(self.start.values()):.1f} s: {split or 'nothing for long'}"


def ledger(metrics: Path) -> Ledger:
    """Read the ledger of a run from its metrics file.

    Raises:
        DataError: the file is missing or damaged.
    """
    return ledger_of(read(metrics))


def ledger_of(records: Iterable[Record]) -> Ledger:
    """Add up the records of a run, all attempts, in the order written."""
    seconds = dict.fromkeys(PARTS, 0.0)
    lasting: list[StepRecord] = []
    starts: dict[str, list[float]] = {}
    begun = attempts = 0
    last_at: float | None = None  # when the process before was last heard of
    ending: Ending | None = None
    for record in records:
        if isinstance(record, Beginning):
            begun += 1
            for what, took in record.seconds.items():
                starts.setdefault(what, []).append(took)
            if last_at is not None:
                seconds[_gap(ending)] += max(record.started_at - last_at, 0.0)
            seconds["start" if begun == 1 else "restart"] += sum(record.seconds.values())
            last_at, ending = record.started_at + sum(record.seconds.values()), None
        elif isinstance(record, StepRecord):
            while lasting and lasting[-1].step >= record.step and lasting[-1].attempt < record.attempt:
                seconds["recomputed"] += lasting.pop().seconds
            lasting.append(record)
            last_at = record.ended_at or last_at
        elif isinstance(record, Ending):
            known = record.checkpoint_seconds
            seconds["checkpoint"] += known
            seconds["stalled" if record.failed else "other"] += max(record.seconds - known, 0.0)
            last_at, ending = record.ended_at, record
        attempts = max(attempts, record.attempt)
    for step in lasting:
        parts = (step.compute_seconds, step.data_seconds, step.checkpoint_seconds)
        for part, value in zip(("compute", "data", "checkpoint"), parts, strict=True):
            seconds["stalled" if part == "compute" and step.skipped else part] += value
        seconds["other"] += max(step.seconds - sum(parts), 0.0)
    return Ledger(seconds, attempts, {what: statistics.median(took) for what, took in starts.items()})


def _gap(ending: Ending | None) -> str:
    """What the time between two processes counts as."""
    if ending is None:
        return "stalled"
    return "restart" if ending.failed else "stopped"
