"""Words between white space, as byte ranges; in scripts without spaces, where asked, every character as one."""

import numba
import numpy as np

from data_pipeline.text.characters import LETTER, MARK, SPACE, UNSPACED, WORD, decode, width
from data_pipeline.text.hashing import hash_bytes

HAS_LETTER = 1
"""Flag of a word with at least one letter (str.isalpha)."""

HAS_WORD_CHARACTER = 2
"""Flag of a word with at least one letter, digit or underscore: not of punctuation alone."""

WordColumns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""starts, ends int64 [words]; characters int32; hashes uint64; flags uint8; first, last int64 [documents]."""


@numba.njit(cache=True, nogil=True, inline="always")
def word_flags(bits: int) -> int:
    """Return the flags of a word whose characters have `bits` together."""
    return (HAS_LETTER if bits & LETTER else 0) | (HAS_WORD_CHARACTER if bits & WORD else 0)


@numba.njit(cache=True, nogil=True)
def whitespace_words(
    data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray, single: np.ndarray
) -> WordColumns:
    """Split every document as str.split does.

    Args:
        table: uint8 [code points], characters.properties().
        single: bool [documents]: where true, a character of a script without spaces is a word, with the marks on it.
    """
    most = 0
    for document in range(len(begin)):
        most += end[document] - begin[document] if single[document] else (end[document] - begin[document]) // 2 + 1
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    characters, hashes, flags = np.empty(most, np.int32), np.empty(most, np.uint64), np.empty(most, np.uint8)
    first, last = np.empty(len(begin), np.int64), np.empty(len(begin), np.int64)
    ascii_table = table[:128].copy()
    word = 0
    for document in range(len(begin)):
        first[document] = word
        at, stop, alone = begin[document], end[document], single[document]
        while at < stop:
            start, continuing, seen, is_single = at, 0, np.uint8(0), False
            while at < stop:
                byte = data[at]
                if byte < 0x80:
                    bits = ascii_table[byte]
                    if bits & SPACE or is_single:
                        break
                    seen |= bits
                    at += 1
                    continue
                bits = table[decode(data, at)]
                if bits & SPACE or (alone and at > start and not bits & MARK and (is_single or bits & UNSPACED)):
                    break
                is_single |= alone and bits & UNSPACED != 0
                seen |= bits
                continuing += width(byte) - 1
                at += width(byte)
            if at > start:
                starts[word], ends[word], characters[word] = start, at, at - start - continuing
                hashes[word], flags[word] = hash_bytes(data, start, at), word_flags(seen)
                word += 1
            else:
                at += width(data[at])
        last[document] = word
    return starts[:word], ends[:word], characters[:word], hashes[:word], flags[:word], first, last


@numba.njit(cache=True, nogil=True)
def count_words(data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return int64 [documents]: how many words str.split finds."""
    counts = np.zeros(len(begin), np.int64)
    spaces = table[:128] & SPACE
    for document in range(len(begin)):
        count, before = 0, np.uint8(SPACE)
        at, stop = begin[document], end[document]
        while at < stop:
            byte = data[at]
            if byte < 0x80:
                space = spaces[byte]
                at += 1
            else:
                space = np.uint8(table[decode(data, at)] & SPACE)
                at += width(byte)
            count += before & (space ^ SPACE)
            before = space
        counts[document] = count
    return counts
