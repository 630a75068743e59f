"""Hashes of byte ranges, and exact numbers for equal ranges.

A hash has 64 bits and serves tables: whatever must be exact compares bytes behind it (`number_spans`). Where hashes
stand for words by themselves, n different words collide with a probability of at most n² / 2⁶⁵.
"""

import numba
import numpy as np

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_EIGHT = np.uint64(8)


@numba.njit(cache=True, nogil=True, inline="always")
def mix(value: np.uint64) -> np.uint64:
    """Spread the bits of a number one to one (David Stafford's variant 13 of MurmurHash3's finaliser)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True, inline="always")
def load(data: np.ndarray, at: int) -> np.uint64:
    """Return the eight bytes from `at` on as one number, the first byte highest; one instruction when compiled."""
    place = np.uint64(at)  # unsigned, so that an index is not looked at for a minus
    value = np.uint64(data[place])
    for shift in range(1, 8):
        value = value << _EIGHT | np.uint64(data[place + np.uint64(shift)])
    return value


@numba.njit(cache=True, nogil=True, inline="always")
def hash_bytes(data: np.ndarray, start: int, end: int) -> np.uint64:
    """Return 64 bits for data[start:end]: eight bytes at a time, each time multiplied and folded.

    Of ranges of the same length of up to eight bytes different ones have different hashes: every step is one to one.
    """
    value, packed, at = np.uint64(end - start), np.uint64(0), start
    while end - at >= 8:
        value = (value ^ load(data, at)) * _PRIME
        value ^= value >> np.uint64(32)
        at += 8
    if end > at:
        if at + 8 <= len(data):
            packed = load(data, at) >> np.uint64(8 * (8 - (end - at)))
        else:
            while at < end:
                packed = packed << _EIGHT | np.uint64(data[at])
                at += 1
    return mix((value ^ packed) * _PRIME)


@numba.njit(cache=True, nogil=True, inline="always")
def equal_bytes(data: np.ndarray, start: int, other: int, length: int) -> bool:
    """Return whether data[start:start + length] and data[other:other + length] are the same."""
    same = 0
    while same < length and data[start + same] == data[other + same]:
        same += 1
    return same == length


FIRST_TABLE = 4096
"""Slots that a table which grows begins with at most: 16 KiB, which a level-one cache holds."""


@numba.njit(cache=True, nogil=True)
def table_size(items: int) -> int:
    """Return a power of two with room for `items` in open addressing: at most half full."""
    size = 16
    while size < 2 * items:
        size *= 2
    return size


@numba.njit(cache=True, nogil=True)
def number_spans(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    hashes: np.ndarray,
    slots: np.ndarray,
    firsts: np.ndarray,
    numbers: np.ndarray,
) -> int:
    """Number the spans of one document: 0, 1, 2, ... in the order in which different ones occur first.

    Exact: equal hashes are compared byte by byte, but for spans that are too short to have the hash of another. The
    table grows with the different spans, which are few of many, so that it stays in the caches.

    Args:
        slots: int32 scratch, at least [table_size(spans)].
        firsts: int32 scratch, at least [spans]: the first span of each number.
        numbers: int32 [spans], written to.

    Returns:
        how many different spans there are.
    """
    size = min(table_size(len(starts)), FIRST_TABLE)
    slots[:size] = -1
    mask = np.uint64(size - 1)
    distinct = 0
    for each in range(len(starts)):
        if 2 * distinct == size:
            size *= 4 if 4 * size <= len(slots) else 2
            slots[:size] = -1
            mask = np.uint64(size - 1)
            for number in range(distinct):
                slot = hashes[firsts[number]] & mask
                while slots[slot] >= 0:
                    slot = (slot + np.uint64(1)) & mask
                slots[slot] = firsts[number]
        slot = hashes[each] & mask
        while True:
            first = slots[slot]
            if first < 0:
                slots[slot], numbers[each], firsts[distinct] = each, distinct, each
                distinct += 1
                break
            length = ends[each] - starts[each]
            if (
                hashes[first] == hashes[each]
                and ends[first] - starts[first] == length
                and (length <= 8 or equal_bytes(data, starts[first], starts[each], length))
            ):
                numbers[each] = numbers[first]
                break
            slot = (slot + np.uint64(1)) & mask
    return distinct
