"""Hashes of every run of n words, and the few of them that any two texts with a long run in common must share."""

import numba
import numpy as np

from data_pipeline.dedup.word_spans import mix

_FACTOR = np.uint64(0x9FB21C651E98DF25)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def window_hashes(words: np.ndarray, length: int) -> np.ndarray:
    """Return uint64 [max(0, words - length + 1)]: a hash of words[i : i + length] for every i.

    Built by doubling: hashes of 1, 2, 4, ... words are joined as the bits of `length` say, so the cost grows with its
    logarithm, and equal windows anywhere have equal hashes. Two different ones have the same with probability 2^-64.
    """
    if len(words) < length:
        return np.zeros(0, np.uint64)
    result, covered, power, size = None, 0, words, 1
    while True:
        if length & size:
            result = power if result is None else _join(result, power, covered)
            covered += size
        if covered == length:
            assert result is not None
            return result[: len(words) - length + 1]
        power, size = _join(power, power, size), 2 * size


@numba.njit(cache=True, nogil=True)
def _join(left: np.ndarray, right: np.ndarray, distance: int) -> np.ndarray:
    """Return the hash of left[i] followed by right[i + distance], for every i that has both."""
    out = np.empty(max(0, min(len(left), len(right) - distance)), np.uint64)
    for place in range(len(out)):
        out[place] = mix(left[place] * _FACTOR + right[place + distance] + _STEP)
    return out


@numba.njit(cache=True, nogil=True)
def minimizers(grams: np.ndarray, offsets: np.ndarray, length: int, gram: int) -> np.ndarray:
    """Choose a gram for every window of `length` words; equal windows choose the same one.

    Winnowing (Schleimer, Wilkerson and Aiken 2003): the smallest hash of the grams of `gram` words inside the window,
    the last of equal ones. Texts that share `length` words in a row share the window, so they share its choice.

    Args:
        grams: uint64, `window_hashes(words, gram)` over all words.
        offsets: int64 [texts + 1] into the words; no window crosses a text.

    Returns:
        int64 [words]: the place in `grams` chosen by the window that begins at each word, -1 where none begins.
    """
    chosen = np.full(offsets[-1], -1, np.int64)
    reach = length - gram  # the last gram of a window begins so many words behind it
    for text in range(len(offsets) - 1):
        best = np.int64(-1)
        for window in range(offsets[text], offsets[text + 1] - length + 1):
            if best < window:
                best = window
                for place in range(window + 1, window + reach + 1):
                    if grams[place] <= grams[best]:
                        best = place
            elif grams[window + reach] <= grams[best]:
                best = window + reach
            chosen[window] = best
    return chosen
