"""Ends of sentences."""

import numba
import numpy as np

from data_pipeline.text.characters import SPACE, decode, width


@numba.njit(cache=True, nogil=True, inline="always")
def _is_mark(byte: int) -> bool:
    return byte == 0x2E or byte == 0x21 or byte == 0x3F  # . ! ?


@numba.njit(cache=True, nogil=True, inline="always")
def _closes(code_point: int) -> bool:
    return code_point in (0x22, 0x27, 0x29, 0x5D, 0x201D, 0x2019)  # " ' ) ] ” ’


@numba.njit(cache=True, nogil=True, inline="always")
def _is_full_width(code_point: int) -> bool:
    return code_point == 0x3002 or code_point == 0xFF01 or code_point == 0xFF1F  # 。 ！ ？


@numba.njit(cache=True, nogil=True)
def count_sentence_ends(data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return int64 [documents]: how often a sentence ends.

    An end is a run of . ! ? and any closing quotes or brackets behind it, when white space or nothing follows; or a
    run of their full-width forms, behind which no space is needed.
    """
    found = np.zeros(len(begin), np.int64)
    for document in range(len(begin)):
        at, stop = begin[document], end[document]
        while at < stop:
            byte = data[at]
            if _is_mark(byte):
                while at < stop and _is_mark(data[at]):
                    at += 1
                behind = at
                while behind < stop and _closes(decode(data, behind)):
                    behind += width(data[behind])
                if behind == stop or table[decode(data, behind)] & SPACE:
                    found[document] += 1
                    at = behind
            elif byte < 0x80:
                at += 1
            elif _is_full_width(decode(data, at)):
                found[document] += 1
                while at < stop and data[at] >= 0x80 and _is_full_width(decode(data, at)):
                    at += width(data[at])
            else:
                at += width(byte)
    return found
