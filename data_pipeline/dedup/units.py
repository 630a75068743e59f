"""Texts as lines, paragraphs or sentences: where each ends, and a hash of it; and texts with some of them taken out.

A unit reaches up to where the next one begins, so the units of a text are all of it. A line ends behind "\\n". A
paragraph ends behind blank lines. A sentence ends behind "\\n", behind white space after one of . ! ? (with closing
quotes and brackets between), and behind a full-width stop.

What is hashed is the unit without white space around it and with runs of it as one space; with `folded`, also in lower
case, with digits as 0, without punctuation and symbols (Wenzek et al. 2020, CCNet, section 3.2; accents stay).
"""

import numba
import numpy as np

from data_pipeline.dedup.characters import CODE_POINT, DIGIT, DROPPED, SPACE, decode, fold
from data_pipeline.dedup.hashing import WORD_START, add_character, mix, next_mix

LINE, PARAGRAPH, SENTENCE = 0, 1, 2

_ZERO = ord("0")
_NEWLINE = 0x0A


@numba.njit(inline="always")
def _stops(code_point: int) -> int:
    """Return 2 for a full-width stop, 1 for a stop, 0 for what may follow it, -1 for anything else."""
    if code_point in (0x3002, 0xFF01, 0xFF1F):
        return 2
    if code_point in (0x2E, 0x21, 0x3F):
        return 1
    if code_point in (0x22, 0x27, 0x29, 0x5D, 0x2019, 0x201D):
        return 0
    return -1


@numba.njit(cache=True, nogil=True)
def split(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, table: np.ndarray, unit: int, folded: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut texts into units.

    Args:
        data, starts, ends: uint8 and int64 [texts], valid UTF-8.
        table: `characters.folding`.

    Returns:
        int64 [texts + 1] offsets into: int64 [units], the byte of `data` where each ends; uint64 [units], its hash;
        int64 [units], how many characters were hashed (0: the unit is blank).
    """
    offsets = np.zeros(len(starts) + 1, np.int64)
    room = 1024
    unit_ends, hashes, sizes = np.empty(room, np.int64), np.empty(room, np.uint64), np.empty(room, np.int64)
    units = 0
    for text in range(len(starts)):
        most = units + _most_units(data[starts[text] : ends[text]])
        if most > room:
            room = max(2 * room, most)
            unit_ends, hashes, sizes = _grown(unit_ends, room), _grown(hashes, room), _grown(sizes, room)
        into = (unit_ends[units:], hashes[units:], sizes[units:])
        units += _split_text(data, starts[text], ends[text], table, unit, folded, *into)
        offsets[text + 1] = units
    return offsets, unit_ends[:units], hashes[:units], sizes[:units]


@numba.njit(cache=True, nogil=True)
def _most_units(text: np.ndarray) -> int:
    """Return a bound: a unit ends behind a newline, a stop, the last byte of a full-width one, or the text."""
    found = 1
    for byte in text:
        found += (byte == _NEWLINE) | (byte == 0x2E) | (byte == 0x21) | (byte == 0x3F)
        found += (byte == 0x82) | (byte == 0x81) | (byte == 0x9F)
    return found


@numba.njit(cache=True, nogil=True)
def _split_text(
    data: np.ndarray,
    place: int,
    end: int,
    table: np.ndarray,
    unit: int,
    folded: bool,
    unit_ends: np.ndarray,
    hashes: np.ndarray,
    sizes: np.ndarray,
) -> int:
    """Cut data[place:end]; return how many units were written."""
    units = 0
    hash_, size = WORD_START, 0
    waiting, stopped, blank_line = False, False, True
    paragraph_end = np.int64(-1)
    while place < end:
        code_point, place = decode(data, place)
        entry = fold(code_point, table)
        unit_end = np.int64(-1)
        if entry == SPACE:
            waiting = size > 0
            newline = code_point == _NEWLINE
            if unit == PARAGRAPH:
                if newline and blank_line and size > 0:
                    paragraph_end = place
            elif newline or (unit == SENTENCE and stopped):
                unit_end = place
            blank_line = newline or blank_line
            stopped = False
        elif paragraph_end >= 0:  # what follows blank lines begins a paragraph, at the start of its line
            unit_end, place = paragraph_end, paragraph_end
            paragraph_end = np.int64(-1)
            blank_line = True
        else:
            blank_line = False
            if not folded or entry != DROPPED:
                if waiting:
                    hash_ = add_character(hash_, 0x20)
                    size += 1
                    waiting = False
                character = code_point
                if folded:
                    character = _ZERO if entry & DIGIT else entry & CODE_POINT
                hash_ = add_character(hash_, character)
                size += 1
            if unit == SENTENCE:
                kind = _stops(code_point)
                stopped = kind > 0 or (stopped and kind == 0)
                if kind == 2:
                    unit_end = place
        if place >= end and unit_end < 0:
            unit_end = end
        if unit_end >= 0:
            unit_ends[units], hashes[units], sizes[units] = unit_end, mix(hash_), size
            units += 1
            hash_, size = WORD_START, 0
            waiting, stopped = False, False
    return units


@numba.njit(cache=True, nogil=True)
def _grown(values: np.ndarray, room: int) -> np.ndarray:
    larger = np.empty(room, values.dtype)
    larger[: len(values)] = values
    return larger


@numba.njit(cache=True, nogil=True)
def spans(
    offsets: np.ndarray, hashes: np.ndarray, sizes: np.ndarray, keys: np.ndarray, length: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the text (int64) and the hash (uint64) of every run of `length` units that are not blank.

    Args:
        offsets, hashes, sizes: of `split`.
        keys: uint64 [texts], part of each hash: runs of texts with different keys are different.
        least: characters that a run must have.
    """
    most = len(hashes)
    texts, found = np.empty(most, np.int64), np.empty(most, np.uint64)
    count = 0
    full = np.empty(most, np.int64)
    for text in range(len(offsets) - 1):
        units = 0
        for unit in range(offsets[text], offsets[text + 1]):
            if sizes[unit]:
                full[units] = unit
                units += 1
        for first in range(units - length + 1):
            key, size = next_mix(keys[text]), 0
            for place in range(first, first + length):
                key = mix(key ^ hashes[full[place]]) + key
                size += sizes[full[place]]
            if size >= least:
                texts[count], found[count] = text, key
                count += 1
    return texts[:count], found[:count]


@numba.njit(cache=True, nogil=True)
def take_out_units(
    data: np.ndarray,
    starts: np.ndarray,
    offsets: np.ndarray,
    unit_ends: np.ndarray,
    sizes: np.ndarray,
    span_removed: np.ndarray,
    length: int,
    least: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Write the texts without the units of removed runs, and without white space at the end of a text that lost some.

    Args:
        span_removed: bool, for each run of `spans`, in its order.

    Returns:
        uint8 bytes and int64 [texts + 1] offsets of the texts; int64 [texts], how many units each lost; int64 [texts],
        how many units that are not blank it has left.
    """
    texts = len(offsets) - 1
    removed = np.zeros(len(unit_ends), np.bool_)
    full = np.empty(len(unit_ends), np.int64)
    out = np.empty(unit_ends[-1] - starts[0] if len(unit_ends) else 0, np.uint8)
    places, lost, left = np.zeros(texts + 1, np.int64), np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    span, written = 0, 0
    for text in range(texts):
        units = 0
        for unit in range(offsets[text], offsets[text + 1]):
            if sizes[unit]:
                full[units] = unit
                units += 1
        for first in range(units - length + 1):
            size = 0
            for place in range(first, first + length):
                size += sizes[full[place]]
            if size >= least:
                if span_removed[span]:
                    for place in range(first, first + length):
                        removed[full[place]] = True
                span += 1
        begin = starts[text]
        for unit in range(offsets[text], offsets[text + 1]):
            if removed[unit]:
                lost[text] += 1
            else:
                left[text] += sizes[unit] > 0
                size = unit_ends[unit] - begin
                out[written : written + size] = data[begin : unit_ends[unit]]
                written += size
            begin = unit_ends[unit]
        if lost[text]:
            while written > places[text] and out[written - 1] <= 0x20:
                written -= 1
        places[text + 1] = written
    return out[:written], places, lost, left
