"""Which of a few given words the words of a document are."""

from collections.abc import Sequence

import numba
import numpy as np

from data_pipeline.text.texts import Spans, Texts


def occurrences_of_words(texts: Texts, words: Spans, wanted: Sequence[str], any_case: bool) -> np.ndarray:
    """Return int64 [len(wanted), documents]: how often each wanted word is a word of the document.

    Args:
        wanted: of up to 8 lower-case ASCII letters each.
        any_case: whether A to Z in the text stand for a to z.
    """
    packed = np.array([int.from_bytes(word.encode(), "big") for word in wanted], np.uint64)
    longest = max(map(len, wanted))
    assert longest <= 8
    fold = np.uint8(0x20 if any_case else 0)
    return _occurrences(texts.data, words.starts, words.ends, words.first, words.last, packed, longest, fold)


@numba.njit(cache=True, nogil=True)
def _occurrences(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    wanted: np.ndarray,
    longest: int,
    fold: np.uint8,
) -> np.ndarray:
    counts = np.zeros((len(wanted), len(first)), np.int64)
    for document in range(len(first)):
        for word in range(first[document], last[document]):
            if ends[word] - starts[word] > longest:
                continue
            packed = np.uint64(0)
            for at in range(starts[word], ends[word]):
                byte = data[at]
                packed = packed << np.uint64(8) | np.uint64(byte | fold if 0x41 <= byte <= 0x5A else byte)
            for each in range(len(wanted)):
                if wanted[each] == packed:
                    counts[each, document] += 1
    return counts


@numba.njit(cache=True, nogil=True)
def words_with_symbols(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """Return int64 [documents]: how many words hold a "#" or a "…"."""
    counts = np.zeros(len(first), np.int64)
    for document in range(len(first)):
        for word in range(first[document], last[document]):
            for at in range(starts[word], ends[word]):
                is_ellipsis = data[at] == 0xE2 and data[at + 1] == 0x80 and data[at + 2] == 0xA6
                if data[at] == 0x23 or is_ellipsis:
                    counts[document] += 1
                    break
    return counts
