"""Words as byte ranges with 128 bits of hash each: what long exact matches are made of.

A word is what stands between white space; a character of a script without spaces (Han, Kana, Thai, ...) is a word of
its own. `folded` words have no punctuation or symbols and are in lower case; without a letter, mark or number there is
none.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.document import text_bytes
from data_pipeline.text.characters import is_unspaced

SLICE_BYTES = 2 * 1024 * 1024
"""Text that is split into words at once, or one document where that is longer."""

_TABLE = 0x20000
_SPACE, _ALONE, _DROPPED = 1 << 31, 1 << 30, 1 << 29
_CODE_POINT = (1 << 21) - 1
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_START, _OTHER_START = np.uint64(0xCBF29CE484222325), np.uint64(0x84222325CBF29CE4)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class WordSpans:
    """The words of some texts, one text behind the other.

    data            uint8 [bytes], the UTF-8 of the texts
    text_offsets    int64 [texts + 1], into data
    offsets         int64 [texts + 1], into the words
    starts, ends    int64 [words], into data
    first, second   uint64 [words], two independent hashes
    """

    data: np.ndarray
    text_offsets: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray
    second: np.ndarray


def word_spans(texts: pa.Array, folded: bool = False) -> WordSpans:
    """Split large_string [texts] (no nulls) into words."""
    _, buffer, data = texts.buffers()
    text_offsets = np.frombuffer(buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    bytes_ = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    return WordSpans(bytes_, text_offsets, *_split(bytes_, text_offsets, _characters(), folded))


def slices(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (first row, rows) of about SLICE_BYTES of text each, so that words of a whole block are never in memory."""
    if not batch.num_rows:
        return
    numbers = np.cumsum(text_bytes(batch)) // SLICE_BYTES
    starts = np.unique(numbers, return_index=True)[1].tolist()
    for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        yield start, batch.slice(start, end - start)


@numba.njit(cache=True, nogil=True, inline="always")
def mix(value: np.uint64) -> np.uint64:
    """Return a number of which every bit depends on every bit of `value` (splitmix64; Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> _SHIFTS[0])) * _MIX[0]
    value = (value ^ (value >> _SHIFTS[1])) * _MIX[1]
    return value ^ (value >> _SHIFTS[2])


@lru_cache(maxsize=1)
def _characters() -> np.ndarray:
    """Return uint32 [_TABLE]: the code point in lower case, and what it is."""
    table = np.arange(_TABLE, dtype=np.uint32)
    for code_point in range(_TABLE):
        character = chr(code_point)
        if character.isspace():
            table[code_point] = _SPACE
            continue
        kept = unicodedata.category(character)[0] in "LMN"
        table[code_point] = ord(character.lower()[0]) | (0 if kept else _DROPPED)
        if is_unspaced(character):
            table[code_point] |= _ALONE
    return table


@numba.njit(cache=True, nogil=True)
def _split(
    data: np.ndarray, text_offsets: np.ndarray, table: np.ndarray, folded: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    texts = len(text_offsets) - 1
    # words have white space between them, or are characters of at least three bytes
    room = (text_offsets[-1] - text_offsets[0]) // 2 + texts + 1
    offsets = np.zeros(texts + 1, np.int64)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    first, second = np.empty(room, np.uint64), np.empty(room, np.uint64)
    words = 0
    for text in range(texts):
        place, end = text_offsets[text], text_offsets[text + 1]
        start, stop, one, other = place, np.int64(-1), _START, _OTHER_START
        while place <= end:
            here, entry, alone = place, np.int64(_SPACE), False
            if place < end:
                byte = np.int64(data[place])
                if byte < 0x80:
                    code_point = byte
                    place += 1
                elif byte < 0xE0:
                    code_point = (byte & 0x1F) << 6 | (np.int64(data[place + 1]) & 0x3F)
                    place += 2
                elif byte < 0xF0:
                    code_point = (byte & 0xF) << 12 | (np.int64(data[place + 1]) & 0x3F) << 6
                    code_point |= np.int64(data[place + 2]) & 0x3F
                    place += 3
                else:
                    code_point = (byte & 7) << 18 | (np.int64(data[place + 1]) & 0x3F) << 12
                    code_point |= (np.int64(data[place + 2]) & 0x3F) << 6 | (np.int64(data[place + 3]) & 0x3F)
                    place += 4
                if code_point < _TABLE:
                    entry = np.int64(table[code_point])
                elif code_point < 0x40000:
                    entry = code_point | _ALONE
                else:
                    entry = code_point | _DROPPED
                if folded and entry & _DROPPED:
                    continue
                alone = entry & _ALONE != 0
            else:
                place += 1
            if (alone or entry & _SPACE) and stop >= 0:
                starts[words], ends[words], first[words], second[words] = start, stop, mix(one), mix(other)
                words += 1
                stop, one, other = np.int64(-1), _START, _OTHER_START
            if entry & _SPACE:
                continue
            if stop < 0:
                start = here
            stop = place
            character = np.uint64(entry & _CODE_POINT if folded else code_point)
            one, other = (one ^ character) * _FIRST, (other ^ character) * _SECOND
            other ^= other >> _SHIFTS[2]
            if alone:
                starts[words], ends[words], first[words], second[words] = start, stop, mix(one), mix(other)
                words += 1
                stop, one, other = np.int64(-1), _START, _OTHER_START
        offsets[text + 1] = words
    return offsets, starts[:words].copy(), ends[:words].copy(), first[:words].copy(), second[:words].copy()
