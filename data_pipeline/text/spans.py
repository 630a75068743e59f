"""Small kernels over spans: edges, totals per document, repeated ones."""

import numba
import numpy as np

from data_pipeline.text.characters import decode
from data_pipeline.text.hashing import number_spans, table_size


@numba.njit(cache=True, nogil=True)
def total(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return int64 [documents]: the sum of `values` [spans] over the spans of each."""
    found = np.zeros(len(first), np.int64)
    for document in range(len(first)):
        sum_ = np.int64(0)
        for each in range(first[document], last[document]):
            sum_ += np.int64(values[each])
        found[document] = sum_
    return found


@numba.njit(cache=True, nogil=True)
def median(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return float64 [documents]: the median of `values` [spans] over the spans of each, NaN where there are none."""
    found = np.full(len(first), np.nan)
    for document in range(len(first)):
        if last[document] > first[document]:
            found[document] = np.median(values[first[document] : last[document]])
    return found


@numba.njit(cache=True, nogil=True)
def starts_with(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Return bool [spans]: whether the first character is one of `characters` (int64, code points)."""
    found = np.zeros(len(starts), np.bool_)
    for each in range(len(starts)):
        if ends[each] > starts[each]:
            code_point = decode(data, starts[each])
            for character in characters:
                found[each] |= character == code_point
    return found


@numba.njit(cache=True, nogil=True)
def ends_with(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Return bool [spans]: whether the last character is one of `characters` (int64, code points)."""
    found = np.zeros(len(starts), np.bool_)
    for each in range(len(starts)):
        if ends[each] > starts[each]:
            at = ends[each] - 1
            while data[at] & 0xC0 == 0x80:
                at -= 1
            code_point = decode(data, at)
            for character in characters:
                found[each] |= character == code_point
    return found


@numba.njit(cache=True, nogil=True)
def ends_with_dots(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return bool [spans]: whether it ends in "..."."""
    found = np.zeros(len(starts), np.bool_)
    for each in range(len(starts)):
        end = ends[each]
        found[each] = end - starts[each] >= 3 and data[end - 1] == data[end - 2] == data[end - 3] == 0x2E
    return found


@numba.njit(cache=True, nogil=True)
def repeated(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    characters: np.ndarray,
    hashes: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    with_first: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the spans of each document that occur more than once in it; exact, bytes are compared.

    Args:
        with_first: whether the first occurrence of such a span counts too.

    Returns:
        int64 [documents]: how many; and how many characters they have.
    """
    most = 0
    for document in range(len(first)):
        most = max(most, last[document] - first[document])
    slots, firsts = np.empty(table_size(most), np.int32), np.empty(most, np.int32)
    numbers, counts = np.empty(most, np.int32), np.empty(most, np.int32)
    found, sizes = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    for document in range(len(first)):
        low, high = first[document], last[document]
        distinct = number_spans(data, starts[low:high], ends[low:high], hashes[low:high], slots, firsts, numbers)
        if distinct == high - low:
            continue
        counts[:distinct] = 0
        for each in range(high - low):
            counts[numbers[each]] += 1
        for each in range(high - low):
            number = numbers[each]
            if counts[number] == 1:
                continue
            if counts[number] > 0:
                counts[number] = -counts[number]  # negative: its first occurrence was here
                if not with_first:
                    continue
            found[document] += 1
            sizes[document] += characters[low + each]
    return found, sizes


def code_points(characters: str) -> np.ndarray:
    """Return int64 [characters]."""
    return np.array(sorted(map(ord, characters)), np.int64)
