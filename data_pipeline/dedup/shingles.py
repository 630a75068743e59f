"""The set of shingles of a text, as 64-bit hashes: what near-copies are compared by.

A text is a sequence of tokens: words in lower case without punctuation, as white space separates them ("Don't" is
`dont`), and single characters of scripts without spaces (Han, Kana, Thai, ...), as `characters.folding` says. A shingle
ends at each token that has enough before it: the last `words` tokens where the token is a word, the last `characters`
where it is a character. A text with tokens but no shingle is one shingle of all of them; one without tokens has none.
"""

import numba
import numpy as np

from data_pipeline.dedup.characters import ALONE, CODE_POINT, DROPPED, SPACE, decode, fold
from data_pipeline.dedup.hashing import WORD_START, add_character, end_word, mix

_BASE = np.uint64(0x9E6C63D0676A9A99)  # odd: the polynomial of the tokens' hashes
_NONE, _ONE = np.uint64(0), np.uint64(1)


def room(most_bytes: int) -> np.ndarray:
    """Return uint64 scratch for the shingles of a text of `most_bytes`: two tokens are at least a byte apart."""
    return np.empty(most_bytes // 2 + 2, np.uint64)


@numba.njit(cache=True, nogil=True)
def shingle_hashes(
    data: np.ndarray, start: int, end: int, table: np.ndarray, words: int, characters: int, out: np.ndarray
) -> int:
    """Write the hash of every shingle of data[start:end] to `out`, in order; return how many there are.

    The hash of tokens t_1 .. t_n is mix(sum of t_i * _BASE^(n-i)); 0 is replaced by 1, so that it can mean nothing.
    """
    longest = max(words, characters)
    ring_size = 1
    while ring_size <= longest:
        ring_size *= 2
    ring = np.zeros(ring_size, np.uint64)  # polynomials of all tokens up to each of the last ones
    word_power, character_power = _ONE, _ONE
    for _ in range(words):
        word_power *= _BASE
    for _ in range(characters):
        character_power *= _BASE
    polynomial, token, hash_ = _NONE, _NONE, WORD_START
    tokens, found = 0, 0
    in_word = False
    place = start
    while place <= end:
        entry = SPACE
        if place < end:
            if data[place] < 0x80:
                entry = np.int64(table[data[place]])
                place += 1
            else:
                code_point, place = decode(data, place)
                entry = fold(code_point, table)
            if entry == DROPPED:
                continue
        else:
            place += 1
        if entry != SPACE and not entry & ALONE:
            hash_ = add_character(hash_, entry & CODE_POINT)
            in_word = True
            continue
        if in_word:
            polynomial = polynomial * _BASE + end_word(hash_)
            tokens += 1
            ring[tokens & (ring_size - 1)] = polynomial
            if tokens >= words:
                out[found] = max(mix(polynomial - ring[(tokens - words) & (ring_size - 1)] * word_power), _ONE)
                found += 1
            hash_ = WORD_START
            in_word = False
        if entry != SPACE:
            token = end_word(add_character(WORD_START, entry & CODE_POINT))
            polynomial = polynomial * _BASE + token
            tokens += 1
            ring[tokens & (ring_size - 1)] = polynomial
            if tokens >= characters:
                before = ring[(tokens - characters) & (ring_size - 1)]
                out[found] = max(mix(polynomial - before * character_power), _ONE)
                found += 1
    if tokens and not found:
        out[0] = max(mix(polynomial), _ONE)
        found = 1
    return found


@numba.njit(cache=True, nogil=True)
def shingle_sets(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, table: np.ndarray, words: int, characters: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [texts + 1] offsets into uint64 [...]: the distinct shingles of each text, as they appear."""
    most = 0
    for text in range(len(starts)):
        most = max(most, ends[text] - starts[text])
    scratch = np.empty(most // 2 + 2, np.uint64)
    offsets = np.zeros(len(starts) + 1, np.int64)
    values = np.empty(1024, np.uint64)
    slots = np.empty(1, np.uint64)
    for text in range(len(starts)):
        found = shingle_hashes(data, starts[text], ends[text], table, words, characters, scratch)
        used = offsets[text]
        if used + found > len(values):
            larger = np.empty(max(2 * len(values), used + found), np.uint64)
            larger[:used] = values[:used]
            values = larger
        size = slot_count(found)
        if size > len(slots):
            slots = np.empty(size, np.uint64)
        slots[:size] = _NONE
        for place in range(found):
            if insert(slots, size, scratch[place]):
                values[used] = scratch[place]
                used += 1
        offsets[text + 1] = used
    return offsets, values[: offsets[-1]]


@numba.njit(inline="always")
def slot_count(members: int) -> int:
    """Return the size of a hash table for so many members: a power of two, at most half of it used."""
    size = 2
    while size < 2 * members:
        size *= 2
    return size


@numba.njit(inline="always")
def insert(slots: np.ndarray, size: int, value: np.uint64) -> bool:
    """Add a hash to a table of `size` slots (0: free); return whether it is new."""
    slot = np.int64(value & np.uint64(size - 1))
    while slots[slot] != _NONE:
        if slots[slot] == value:
            return False
        slot = (slot + 1) & (size - 1)
    slots[slot] = value
    return True


@numba.njit(inline="always")
def contains(slots: np.ndarray, size: int, value: np.uint64) -> bool:
    """Return whether a hash is in a table of `size` slots."""
    slot = np.int64(value & np.uint64(size - 1))
    while slots[slot] != _NONE:
        if slots[slot] == value:
            return True
        slot = (slot + 1) & (size - 1)
    return False
