"""Texts put together again from what stays of their lines."""

from functools import cache

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.text.characters import DIGIT, decode, properties, width
from data_pipeline.text.texts import Spans, Texts

_MARKS = ("[edit]", "[citation needed]")


def join_lines(texts: Texts, lines: Spans, keep: np.ndarray) -> pa.LargeStringArray:
    """Return each text as its kept lines, one newline between them; a text that keeps all stays as it is.

    Args:
        lines: of `texts`; starts and ends may have been moved inwards, which leaves that part out.
        keep: bool [lines].
    """
    return _arrow(*_join_lines(texts.data, texts.begin, texts.end, lines.starts, lines.ends, lines.first, lines.last, keep))


def strip_citations(texts: Texts) -> Texts:
    """Return the texts without the marks [1] (any decimal digits), [edit] and [citation needed]."""
    if not texts.census("citations").any():
        return texts
    data, offsets = _strip_citations(texts.data, texts.begin, texts.end, properties(), *_encoded_marks())
    if offsets[-1] == (texts.end - texts.begin).sum():
        return texts
    return Texts(data, offsets[:-1], offsets[1:])


def to_arrow(texts: Texts) -> pa.LargeStringArray:
    """Return texts that lie one behind the other from byte 0, without copying them."""
    return _arrow(texts.data, np.append(texts.begin, texts.end[-1:]))


def _arrow(data: np.ndarray, offsets: np.ndarray) -> pa.LargeStringArray:
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


@cache
def _encoded_marks() -> tuple[np.ndarray, ...]:
    return tuple(np.frombuffer(mark.encode(), np.uint8) for mark in _MARKS)


@numba.njit(cache=True, nogil=True)
def _join_lines(
    data: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    keep: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    joined = np.empty((end - begin).sum(), np.uint8)
    offsets = np.zeros(len(begin) + 1, np.int64)
    size = 0
    for document in range(len(begin)):
        low, high = first[document], last[document]
        if keep[low:high].all():
            length = end[document] - begin[document]
            joined[size : size + length] = data[begin[document] : end[document]]
            size += length
        else:
            behind_first = False
            for line in range(low, high):
                if keep[line]:
                    if behind_first:
                        joined[size] = 0x0A
                        size += 1
                    length = ends[line] - starts[line]
                    joined[size : size + length] = data[starts[line] : ends[line]]
                    size += length
                    behind_first = True
        offsets[document + 1] = size
    return joined[:size], offsets


@numba.njit(cache=True, nogil=True)
def _citation_end(
    data: np.ndarray, at: int, stop: int, table: np.ndarray, edit: np.ndarray, needed: np.ndarray
) -> int:
    """Return the byte behind the citation mark that starts at `at`, or `at` where none does."""
    for mark in (edit, needed):
        if at + len(mark) <= stop and (data[at : at + len(mark)] == mark).all():
            return at + len(mark)
    behind = at + 1
    while behind < stop and table[decode(data, behind)] & DIGIT:
        behind += width(data[behind])
    return behind + 1 if at + 1 < behind < stop and data[behind] == 0x5D else at


@numba.njit(cache=True, nogil=True)
def _strip_citations(
    data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray, edit: np.ndarray, needed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    stripped = np.empty((end - begin).sum(), np.uint8)
    offsets = np.zeros(len(begin) + 1, np.int64)
    size = 0
    for document in range(len(begin)):
        at, stop = begin[document], end[document]
        while at < stop:
            if data[at] == 0x5B:
                behind = _citation_end(data, at, stop, table, edit, needed)
                if behind > at:
                    at = behind
                    continue
            stripped[size] = data[at]
            size += 1
            at += 1
        offsets[document + 1] = size
    return stripped[:size], offsets
