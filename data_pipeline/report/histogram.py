"""Bins that are known before the data is, so that two histograms of a score always add up.

A value from -1 to 1 falls into a bin of width 0.01: exact for shares. Beyond that a bin is all values with the same
two leading digits: a tenth wide up to 10, one wide up to 100, ten up to 1000. A bin is named by its lower edge. Edges
belong to the bin above them, and a value that misses an edge by less than 1e-9 of a bin's width counts as on it: 0.29
is not in the bin of 0.28 because of how floating point writes it.
"""

from functools import cache

import numpy as np

_DECADES = 10.0 ** np.arange(19)
_HUNDREDTHS = 100
_PER_DECADE = 90
_LAST = _HUNDREDTHS + _PER_DECADE * len(_DECADES)
_TOUCH = 1e-9


def bin_numbers(values: np.ndarray) -> np.ndarray:
    """Return int64, one for every float64: the number of its bin, in the order of the values; NaN is not allowed.

    Values beyond +-1e19 share the outermost bins.
    """
    magnitude = np.minimum(np.abs(values), _DECADES[-1] * 9.9)
    decade = np.maximum(np.searchsorted(_DECADES, magnitude, side="right") - 1, 0)
    below_one = magnitude < 1
    scaled = magnitude * np.where(below_one, _HUNDREDTHS, 10 / _DECADES[decade])
    offset = np.where(below_one, 0, _HUNDREDTHS + _PER_DECADE * decade - 10)
    negative = values < 0
    upward = np.floor(scaled + _TOUCH) + offset
    downward = -(np.ceil(scaled - _TOUCH) + offset)
    return np.where(negative, downward, upward).astype(np.int64)


def lower_edge(number: int) -> float:
    """Return where the bin of this number begins."""
    magnitude = abs(number)
    if magnitude < _HUNDREDTHS:
        edge = magnitude / _HUNDREDTHS
    else:
        decade, digits = divmod(magnitude - _HUNDREDTHS, _PER_DECADE)
        edge = (digits + 10) * 10**decade / 10
    return -edge if number < 0 else edge


def count_bins(scores: np.ndarray) -> list[dict[str, int]]:
    """Count each row of scores (float64 [scores, documents]) into bins named by their lower edge; NaN is left out."""
    known = ~np.isnan(scores)
    numbers = bin_numbers(np.where(known, scores, 0))
    lowest = int(numbers.min(initial=0))
    width = int(numbers.max(initial=0)) - lowest + 1
    rows = np.arange(len(scores))[:, None]
    counts = np.bincount((numbers - lowest + rows * width)[known], minlength=len(scores) * width).reshape(-1, width)
    filled, bins = np.nonzero(counts)
    result: list[dict[str, int]] = [{} for _ in scores]
    for row, number, count in zip(
        filled.tolist(), (bins + lowest).tolist(), counts[filled, bins].tolist(), strict=True
    ):
        result[row][_name(number)] = count
    return result


@cache  # there are not many bins
def _name(number: int) -> str:
    return f"{lower_edge(number):.12g}"


def upper_edge(lower: float) -> float:
    """Return where the bin that begins at `lower` ends."""
    if -1 <= lower < 1:
        return round(lower + 0.01, 2)
    decade = np.searchsorted(_DECADES, abs(lower), side="right" if lower > 0 else "left") - 1
    return lower + float(_DECADES[decade]) / 10
