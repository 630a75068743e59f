"""What a local stage says about a batch: scores and the rules that cut them, before anything is dropped."""

from dataclasses import dataclass, field
from math import inf

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Rule:
    """A document is kept by it where minimum <= score <= maximum, or where the score is NaN (the rule abstains)."""

    reason: str
    score: str
    minimum: float = -inf
    maximum: float = inf


@dataclass
class Measurement:
    """Nothing of it is dropped yet."""

    scores: dict[str, np.ndarray]  # name -> float64 [documents]
    texts: pa.LargeStringArray | None = None  # edited texts; None: unchanged
    columns: dict[str, pa.Array] = field(default_factory=dict)  # other columns to set
    drops: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # reason -> bool [documents], drops that are no threshold
    counts: dict[str, int] = field(default_factory=dict)  # summed into the statistics
