"""What a filter says about a batch: scores first, decisions afterwards.

A filter measures every document of a batch without dropping any, and names its thresholds as a table of rules. The
decision is the same few lines for all filters, so that a histogram can show where a threshold cuts, and another
threshold can be tried on stored scores without reading the text again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
import pyarrow as pa

from data_pipeline.text import Texts


@dataclass(frozen=True)
class Rule:
    """A document passes where `minimum` <= score <= `maximum`, or where the score is NaN: the rule abstains."""

    reason: str  # the drop is counted as <stage>.<reason>
    score: str  # without the stage's name
    minimum: float = -inf
    maximum: float = inf

    def passes(self, values: np.ndarray) -> np.ndarray:
        """Return bool [documents] for float64 [documents]."""
        return ~((values < self.minimum) | (values > self.maximum))


@dataclass
class Measurement:
    """What a filter found out about a batch; nothing is dropped yet."""

    scores: dict[str, np.ndarray]  # name -> float64 [documents], NaN where the rule abstains
    texts: pa.LargeStringArray | None = None  # the edited texts; None: not edited
    known: Texts | None = None  # the edited texts again, with what the filter knows of them already
    columns: dict[str, pa.Array] = field(default_factory=dict)  # other columns to set, such as `language`
    drops: dict[str, np.ndarray] = field(default_factory=dict)  # reason -> bool [documents], where no threshold decides
    counts: dict[str, int] = field(default_factory=dict)  # what was edited, by rule: lines removed, addresses masked


KEEP = -1


def decide(measurement: Measurement, rules: Sequence[Rule], documents: int) -> tuple[np.ndarray, list[str]]:
    """Return for each document the index of what drops it first (int64, KEEP where nothing does), and all reasons.

    The drops of the measurement come before the rules, each group in its own order.
    """
    reasons = [*measurement.drops, *(rule.reason for rule in rules)]
    failed = [*measurement.drops.values(), *(~rule.passes(measurement.scores[rule.score]) for rule in rules)]
    verdicts = np.full(documents, KEEP, np.int64)
    for index in reversed(range(len(reasons))):
        verdicts[failed[index]] = index
    return verdicts, reasons
