"""Shares of repeated n-grams of words, for n = 2 to 10, without hash collisions."""

import numba
import numpy as np

from data_pipeline.text.hashing import FIRST_TABLE, number_spans, table_size

TOP_SIZES = (2, 3, 4)
DUPLICATED_SIZES = (5, 6, 7, 8, 9, 10)
LARGEST = 10

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiplied by it, numbers that follow each other spread best over the high bits (Knuth,
The Art of Computer Programming 6.4)."""

PAPER, DATATROVE, DOLMA = 0, 1, 2
"""What a share is; see `ngram_shares`."""


@numba.njit(cache=True, nogil=True)
def _clear(slots: np.ndarray, size: int) -> tuple[np.uint64, np.uint64]:
    """Empty a table of `size`, a power of two; return the mask of its slots, and how far a hash is shifted to one."""
    slots[:size] = -1
    mask, shift = np.uint64(size - 1), np.uint64(64)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    return mask, shift


@numba.njit(cache=True, nogil=True)
def _number_pairs(
    ids: np.ndarray, words: np.ndarray, distinct: int, keys: np.ndarray, slots: np.ndarray, numbers: np.ndarray
) -> int:
    """Number pairs (ids[i], words[i]) in the order of first occurrence; exact, the pairs are compared.

    Returns:
        how many different pairs there are; `numbers` [pairs] is written to, `keys` and `slots` are scratch.
    """
    size = min(table_size(len(ids)), FIRST_TABLE)
    mask, shift = _clear(slots, size)
    count = 0
    for each in range(len(ids)):
        if 2 * count == size:
            size *= 4 if 4 * size <= len(slots) else 2
            mask, shift = _clear(slots, size)
            for number in range(count):
                slot = np.uint64(keys[number]) * _GOLDEN >> shift
                while slots[slot] >= 0:
                    slot = (slot + np.uint64(1)) & mask
                slots[slot] = number
        key = np.int64(ids[each]) * distinct + words[each]
        slot = np.uint64(key) * _GOLDEN >> shift
        while True:
            number = slots[slot]
            if number < 0:
                slots[slot], keys[count], numbers[each] = count, key, count
                count += 1
                break
            if keys[number] == key:
                numbers[each] = number
                break
            slot = (slot + np.uint64(1)) & mask
    return count


@numba.njit(cache=True, nogil=True)
def _top(counts: np.ndarray, firsts: np.ndarray, edges: np.ndarray, n: int, definition: int) -> int:
    """Return occurrences times characters of the most frequent n-gram.

    Args:
        counts, firsts: of every n-gram that may repeat, in the order of first occurrence.
        edges: int64 [words + 1], characters before each word.
    """
    spaces = n - 1 if definition == DATATROVE else 0
    most = best = 0
    for gram in range(len(counts)):
        size = edges[firsts[gram] + n] - edges[firsts[gram]] + spaces
        if counts[gram] > most:
            most, best = counts[gram], size
        elif counts[gram] == most and definition == PAPER:
            best = max(best, size)
    if most < 2:
        if definition == PAPER or len(edges) <= n:
            return 0
        return edges[n] + spaces  # the first of those that all occur once
    return most * best


@numba.njit(cache=True, nogil=True)
def _duplicated(
    places: np.ndarray, numbers: np.ndarray, counts: np.ndarray, edges: np.ndarray, n: int, definition: int
) -> int:
    """Return the characters in n-grams that occurred before (DOLMA: in n-grams that occur more than once).

    Args:
        places: words at which n-grams that may repeat begin, ascending; numbers: which n-gram that is.
        counts: occurrences of each; overwritten.
    """
    covered = characters = 0  # words before `covered` are done with
    for each in range(len(places)):
        place, number = places[each], numbers[each]
        size = edges[place + n] - edges[place]
        if definition == DOLMA:
            if counts[number] > 1:
                characters += size
        elif definition == DATATROVE and place < covered:
            continue  # an n-gram inside a duplicate is neither counted nor remembered
        elif counts[number] > 0:
            counts[number] = 0  # it occurred
        elif place + n > covered:
            characters += edges[place + n] - edges[max(place, covered)]
            covered = place + n
    return characters


@numba.njit(cache=True, nogil=True)
def ngram_shares(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    characters: np.ndarray,
    hashes: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    text_characters: np.ndarray,
    definition: int,
    smallest: int,
) -> np.ndarray:
    """Return float64 [LARGEST + 1, documents]: row n is the share of characters in n-grams that repeat.

    An n-gram can repeat only where both (n-1)-grams in it do, its own and the one a word further on: work shrinks
    with n.

    Rows 2 to 4, the most frequent n-gram, occurrences times characters:
        PAPER: it occurs twice at least; of equally frequent ones the longest; over the characters of all words, at
        most 1. DATATROVE: the first of equally frequent ones, spaces between its words counted, over the characters
        of the text. DOLMA: as DATATROVE without spaces, over the characters of all words.
    Rows 5 to 10, duplicated n-grams:
        PAPER: words in an n-gram that occurred before, each once, over the characters of all words. DATATROVE: after
        a duplicate the search goes on behind it; over the characters of the text. DOLMA: all occurrences of all
        n-grams that repeat over all occurrences of all n-grams.

    Args:
        starts to last: the words (Spans).
        text_characters: int64 [documents].
        smallest: rows below are left at 0.
    """
    shares = np.zeros((LARGEST + 1, len(first)))
    most = 0
    for document in range(len(first)):
        most = max(most, last[document] - first[document])
    slots, keys = np.empty(table_size(most), np.int32), np.empty(most, np.int64)
    words, numbers, ids = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    places, next_words = np.empty(most, np.int32), np.empty(most, np.int32)
    counts, firsts, edges = np.empty(most, np.int32), np.empty(most, np.int32), np.zeros(most + 1, np.int64)
    for document in range(len(first)):
        low, high = first[document], last[document]
        length = high - low
        distinct = number_spans(data, starts[low:high], ends[low:high], hashes[low:high], slots, firsts, words)
        for word in range(length):
            edges[word + 1] = edges[word] + characters[low + word]
        kinds, left = distinct, length
        for word in range(length):
            places[word] = word
            numbers[word] = words[word]
        for n in range(1, LARGEST + 1):
            if n > 1:
                inside = 0
                for each in range(left - 1):
                    if places[each + 1] == places[each] + 1:
                        places[inside], ids[inside] = places[each], ids[each]
                        next_words[inside] = words[places[each] + n - 1]
                        inside += 1
                left = inside
                kinds = _number_pairs(ids[:left], next_words[:left], distinct, keys, slots, numbers)
            counts[:kinds] = 0
            for each in range(left):
                if counts[numbers[each]] == 0:
                    firsts[numbers[each]] = places[each]
                counts[numbers[each]] += 1
            again = 0
            for each in range(left):
                if counts[numbers[each]] > 1:
                    places[again], ids[again] = places[each], numbers[each]
                    again += 1
            if n >= smallest:
                whole = text_characters[document] if definition == DATATROVE else edges[length]
                if 2 <= n <= 4:
                    share = _top(counts[:kinds], firsts[:kinds], edges[: length + 1], n, definition)
                elif n > 4:
                    share = _duplicated(places[:again], ids[:again], counts, edges[: length + 1], n, definition)
                    if definition == DOLMA:
                        whole = 0
                        for word in range(length - n + 1):
                            whole += edges[word + n] - edges[word]
                else:
                    share = 0
                if whole > 0:
                    shares[n, document] = share / whole if definition != PAPER else min(1.0, share / whole)
            left = again
    return shares
