"""The words of a text as numbers: what classifiers and word lists compare.

A word is a maximal run of letters, marks and digits, in lower case; a character of a script without spaces between
words, or a symbol such as an emoji, is a word by itself. So a word list finds whole words only: "Scunthorpe" holds no
other word. A word is a 64-bit hash of its code points, an n-gram a hash of its words' hashes.
"""

import unicodedata
from functools import cache

import numba
import numpy as np
import pyarrow as pa

_LAST = 0x323B0  # of the letters and digits that Unicode has assigned, up to CJK extension H
_ALONE_RANGES = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),  # half-width Katakana
    (0x20000, 0x323B0),
)
_START = np.uint64(0x9AE16A3B2F90404F)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_FOLD = np.uint64(29)
_HALF = np.uint64(32)
_GRAM = np.uint64(0xC2B2AE3D27D4EB4F)


@cache
def character_table() -> np.ndarray:
    """Return int32 [code points]: 0 for a separator, −code for a word by itself, else the lower-case code point."""
    table = np.zeros(_LAST, np.int32)
    alone = np.zeros(_LAST, bool)
    for first, last in _ALONE_RANGES:
        alone[first : last + 1] = True
    for code in range(_LAST):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LMN":
            lower = character.lower()
            folded = ord(lower) if len(lower) == 1 else code
            table[code] = -code if alone[code] else folded
        elif category == "So":
            table[code] = -code
    return table


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (int64 [texts + 1] offsets, uint8 [bytes]) of a large_string array without nulls, without a copy."""
    assert pa.types.is_large_string(texts.type) and texts.null_count == 0
    _, offsets, data = texts.buffers()
    if len(texts) == 0:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return offsets, np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)


def words_of(texts: pa.Array, max_bytes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (int64 [texts + 1] offsets, uint64 [words]): the hashes of the words of each text.

    Args:
        max_bytes: words that begin behind this many bytes of a text are left out; 0: none.
    """
    return _words(*text_buffers(texts), character_table(), max_bytes)


def gram_hash(text: str) -> tuple[int, int]:
    """Return (how many words, hash of their n-gram) of a short text."""
    _, words = words_of(pa.array([text], pa.large_string()))
    return len(words), int(_gram(words, 0, len(words))) if len(words) else 0


@numba.njit(cache=True, nogil=True, inline="always")
def extend(gram: np.uint64, word: np.uint64) -> np.uint64:
    """Return the hash of an n-gram with one word more; the first word's n-gram is its own hash."""
    mixed = (gram ^ (gram >> _HALF)) * _GRAM + word
    return mixed ^ (mixed >> _FOLD)


@numba.njit(cache=True, nogil=True)
def _gram(words, first, last):
    gram = words[first]
    for index in range(first + 1, last):
        gram = extend(gram, words[index])
    return gram


@numba.njit(cache=True, nogil=True)
def _words(offsets, data, table, max_bytes):
    documents = offsets.size - 1
    word_offsets = np.zeros(documents + 1, np.int64)
    words = np.empty((offsets[documents] - offsets[0]) // 2 + documents + 1, np.uint64)
    count = 0
    for document in range(documents):
        position, end = offsets[document], offsets[document + 1]
        limit = end if max_bytes == 0 else min(end, position + max_bytes)
        current = _START
        inside = False
        while position < end:
            first = data[position]
            code = np.int64(first)
            begins = position
            if first < 0x80:
                position += 1
            elif first < 0xE0:
                code = (code & 0x1F) << 6 | _tail(data, position + 1, end)
                position += 2
            elif first < 0xF0:
                code = (code & 0x0F) << 12 | _tail(data, position + 1, end) << 6 | _tail(data, position + 2, end)
                position += 3
            else:
                code = (
                    (code & 0x07) << 18
                    | _tail(data, position + 1, end) << 12
                    | _tail(data, position + 2, end) << 6
                    | _tail(data, position + 3, end)
                )
                position += 4
            folded = np.int64(table[code]) if code < table.size else np.int64(0)
            if folded > 0:
                if not inside and begins >= limit:
                    break
                current = (current ^ np.uint64(folded)) * _PRIME
                current ^= current >> _FOLD
                inside = True
                continue
            if inside:
                words[count] = current
                count += 1
                current = _START
                inside = False
            if begins >= limit:
                break
            if folded < 0:
                alone = (_START ^ np.uint64(-folded)) * _PRIME
                words[count] = alone ^ (alone >> _FOLD)
                count += 1
        if inside:
            words[count] = current
            count += 1
        word_offsets[document + 1] = count
    return word_offsets, words[:count].copy()


@numba.njit(cache=True, nogil=True, inline="always")
def _tail(data, position, end):
    return np.int64(data[position] & 0x3F) if position < end else np.int64(0)
