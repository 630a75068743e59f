"""Words by Unicode's default word boundaries (UAX #29, section 4.1, rules WB1 to WB999), as byte ranges."""

from functools import cache
from pathlib import Path

import numba
import numpy as np

from data_pipeline.text.characters import CODE_POINTS, WORD, decode, width
from data_pipeline.text.hashing import hash_bytes
from data_pipeline.text.words import WordColumns, word_flags

PATH = Path(__file__).with_name("word_break.tsv")

CLASSES = (
    "Other",
    "CR",
    "LF",
    "Newline",
    "Extend",
    "Format",
    "ZWJ",
    "Regional_Indicator",
    "Katakana",
    "Hebrew_Letter",
    "ALetter",
    "Single_Quote",
    "Double_Quote",
    "MidNumLet",
    "MidLetter",
    "MidNum",
    "Numeric",
    "ExtendNumLet",
    "WSegSpace",
    "Extended_Pictographic",
)
"""Values of Word_Break, and the property Extended_Pictographic for characters that are Other."""

CR, LF, NEWLINE, EXTEND, FORMAT, ZWJ, REGIONAL, KATAKANA, HEBREW, LETTERS = range(1, 11)
SINGLE_QUOTE, DOUBLE_QUOTE, MID_NUMBER_LETTER, MID_LETTER, MID_NUMBER, NUMERIC, CONNECTOR, SPACES, PICTOGRAPH = range(
    11, 20
)
NONE = -1
PICTOGRAPHIC_LETTERS = (0x2139, 0x24C2, 0x1F170, 0x1F171, 0x1F17E, 0x1F17F)
"""Extended_Pictographic, but ALetter too, which is what CLASSES says of them."""


@cache
def word_break_table() -> np.ndarray:
    """Return uint8 [code points]: the index in CLASSES."""
    table = np.zeros(CODE_POINTS, np.uint8)
    for row in PATH.read_text().splitlines():
        if not row.startswith("#"):
            first, last, name = row.split("\t")
            table[int(first, 16) : int(last, 16) + 1] = CLASSES.index(name)
    return table


@numba.njit(cache=True, nogil=True, inline="always")
def _is_letter(kind: int) -> bool:
    return kind in (LETTERS, HEBREW)


@numba.njit(cache=True, nogil=True, inline="always")
def _is_line_end(kind: int) -> bool:
    return kind in (CR, LF, NEWLINE)


@numba.njit(cache=True, nogil=True, inline="always")
def _is_ignored(kind: int) -> bool:
    return kind in (EXTEND, FORMAT, ZWJ)


@numba.njit(cache=True, nogil=True)
def _kind_behind(data: np.ndarray, at: int, stop: int, kinds: np.ndarray) -> int:
    """Return the class of the first character in data[at:stop] that WB4 does not ignore, or NONE."""
    while at < stop:
        kind = np.int64(kinds[decode(data, at)])
        if not _is_ignored(kind):
            return kind
        at += width(data[at])
    return NONE


@numba.njit(cache=True, nogil=True, inline="always")
def _joins(earlier: int, before: int, kind: int, behind: int) -> bool:
    """Return whether WB5 to WB13b forbid a break between classes `before` and `kind`; WB4 is already applied."""
    if _is_letter(before):
        if _is_letter(kind) or kind in (NUMERIC, CONNECTOR):  # WB5, WB9, WB13a
            return True
        if kind == SINGLE_QUOTE and before == HEBREW:  # WB7a
            return True
        if kind == DOUBLE_QUOTE and before == HEBREW:  # WB7b
            return behind == HEBREW
        return (kind in (MID_LETTER, MID_NUMBER_LETTER, SINGLE_QUOTE)) and _is_letter(behind)  # WB6
    if before == NUMERIC:
        if kind in (NUMERIC, CONNECTOR) or _is_letter(kind):  # WB8, WB10, WB13a
            return True
        middle = kind in (MID_NUMBER, MID_NUMBER_LETTER, SINGLE_QUOTE)
        return middle and behind == NUMERIC  # WB12
    if before == KATAKANA:
        return kind == KATAKANA or kind == CONNECTOR  # WB13, WB13a
    if before == CONNECTOR:
        return kind == CONNECTOR or _is_letter(kind) or kind == NUMERIC or kind == KATAKANA  # WB13a, WB13b
    if _is_letter(kind) and _is_letter(earlier):
        if before in (MID_LETTER, MID_NUMBER_LETTER, SINGLE_QUOTE):  # WB7
            return True
        return before == DOUBLE_QUOTE and earlier == HEBREW and kind == HEBREW  # WB7c
    if kind == NUMERIC and earlier == NUMERIC:
        return before == MID_NUMBER or before == MID_NUMBER_LETTER or before == SINGLE_QUOTE  # WB11
    return False


@numba.njit(cache=True, nogil=True)
def next_boundary(data: np.ndarray, start: int, stop: int, kinds: np.ndarray) -> int:
    """Return where the segment ends that begins at byte `start`."""
    raw = np.int64(kinds[decode(data, start)])
    earlier, before, indicators = NONE, raw, 1
    at = start + width(data[start])
    while at < stop:
        code_point = decode(data, at)
        kind = np.int64(kinds[code_point])
        pictograph = kind == PICTOGRAPH or code_point in PICTOGRAPHIC_LETTERS
        if raw == CR and kind == LF:  # WB3
            pass
        elif _is_line_end(raw) or _is_line_end(kind):  # WB3a, WB3b
            return at
        elif _is_ignored(kind):  # WB4
            raw = kind
            at += width(data[at])
            continue
        elif (raw == ZWJ and pictograph) or (raw == SPACES and kind == SPACES):  # WB3c, WB3d
            pass
        elif before == REGIONAL and kind == REGIONAL:  # WB15, WB16
            if indicators % 2 == 0:
                return at
            indicators += 1
        else:
            behind = NONE
            middle = kind in (SINGLE_QUOTE, DOUBLE_QUOTE) or MID_NUMBER_LETTER <= kind <= MID_NUMBER
            if middle and (_is_letter(before) or before == NUMERIC):
                behind = _kind_behind(data, at + width(data[at]), stop, kinds)
            if not _joins(earlier, before, kind, behind):
                return at
        earlier, before, raw = before, kind, kind
        at += width(data[at])
    return stop


@numba.njit(cache=True, nogil=True)
def uax29_words(
    data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray, kinds: np.ndarray
) -> WordColumns:
    """Find the segments between word boundaries that hold a letter, a digit or an underscore (\\w of the module re).

    Args:
        table: uint8 [code points], characters.properties().
        kinds: uint8 [code points], word_break_table().
    """
    most = 0
    for document in range(len(begin)):
        most += end[document] - begin[document]
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    characters, hashes, flags = np.empty(most, np.int32), np.empty(most, np.uint64), np.empty(most, np.uint8)
    first, last = np.empty(len(begin), np.int64), np.empty(len(begin), np.int64)
    word = 0
    for document in range(len(begin)):
        first[document] = word
        start, stop = begin[document], end[document]
        while start < stop:
            boundary = next_boundary(data, start, stop, kinds)
            seen, count, at = np.uint8(0), 0, start
            while at < boundary:
                seen |= table[decode(data, at)]
                count += 1
                at += width(data[at])
            if seen & WORD:
                starts[word], ends[word], characters[word] = start, boundary, count
                hashes[word], flags[word] = hash_bytes(data, start, boundary), word_flags(seen)
                word += 1
            start = boundary
        last[document] = word
    return starts[:word], ends[:word], characters[:word], hashes[:word], flags[:word], first, last
