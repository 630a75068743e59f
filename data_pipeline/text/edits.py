"""Texts put together again from what stays of their lines."""

from functools import cache

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.text.characters import DIGIT, decode, properties, width
from data_pipeline.text.texts import Spans, Texts

_MARKS = ("[edit]", "[citation needed]")


def join_lines(texts: Texts, lines: Spans, keep: np.ndarray, edited: np.ndarray | None = None) -> pa.LargeStringArray:
    """Return each text as its kept lines, one newline between them; a text that keeps all stays as it is.

    Args:
        lines: of `texts`, compact: line by line as they follow in the documents.
        keep: bool [lines].
        edited: bool [lines], those that do not say any more what the text says.
    """
    edited = np.zeros(len(keep), bool) if edited is None else edited
    columns = lines.starts, lines.ends, lines.first, lines.last
    data, offsets = _join_lines(texts.data, texts.begin, texts.end, *columns, keep, edited)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(data))


def joined(texts: Texts, lines: Spans, keep: np.ndarray, array: pa.LargeStringArray) -> Texts:
    """Return what `join_lines` made of stripped `lines` without further edits, its lines known without a new look."""
    after = Texts.from_arrow(array)
    counts = lines.counts
    lengths = lines.ends - lines.starts
    behind = np.cumsum(np.where(keep, lengths + 1, 0))  # with a newline behind each kept line
    before = np.concatenate((np.zeros(1, np.int64), behind))
    removed = np.concatenate((np.zeros(1, np.int64), np.cumsum(~keep)))
    is_whole = np.repeat(removed[lines.last] == removed[lines.first], counts)
    document = np.repeat(np.arange(len(texts)), counts)
    in_whole = lines.starts - texts.begin[document]
    in_edited = before[:-1] - before[lines.first][document]
    starts = (after.begin[document] + np.where(is_whole, in_whole, in_edited))[keep]
    kept = np.concatenate((np.zeros(1, np.int64), np.cumsum(keep)))
    spans = Spans(
        starts,
        starts + lengths[keep],
        lines.characters[keep],
        lines.hashes[keep],
        lines.flags[keep],
        kept[lines.first],
        kept[lines.last],
    )
    after.once("lines", lambda: spans)
    return after


def strip_citations(texts: Texts) -> tuple[Texts, np.ndarray]:
    """Take out the marks [1] (any decimal digits), [edit] and [citation needed].

    Returns:
        the texts; bool [documents], which had any.
    """
    changed = np.zeros(len(texts), bool)
    rows = np.flatnonzero(texts.census("citations"))
    if not len(rows):
        return texts, changed
    how = properties(), *_encoded_marks()
    rows = rows[_has_citations(texts.data, texts.begin[rows], texts.end[rows], *how)]
    changed[rows] = True
    if not len(rows):
        return texts, changed
    data, offsets = _strip_citations(texts.data, texts.begin[rows], texts.end[rows], *how)
    return texts.replace(rows, Texts(data, offsets[:-1], offsets[1:])), changed


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
    edited: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    joined = np.empty((end - begin).sum(), np.uint8)  # edits only shorten
    offsets = np.zeros(len(begin) + 1, np.int64)
    size = 0
    for document in range(len(begin)):
        low, high = first[document], last[document]
        if keep[low:high].all() and not edited[low:high].any():
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
def _citation_end(data: np.ndarray, at: int, stop: int, table: np.ndarray, edit: np.ndarray, needed: np.ndarray) -> int:
    """Return the byte behind the citation mark that starts at `at`, or `at` where none does."""
    for mark in (edit, needed):
        if at + len(mark) <= stop and (data[at : at + len(mark)] == mark).all():
            return at + len(mark)
    behind = at + 1
    while behind < stop and table[decode(data, behind)] & DIGIT:
        behind += width(data[behind])
    return behind + 1 if at + 1 < behind < stop and data[behind] == 0x5D else at


@numba.njit(cache=True, nogil=True)
def _has_citations(
    data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray, edit: np.ndarray, needed: np.ndarray
) -> np.ndarray:
    found = np.zeros(len(begin), np.bool_)
    for document in range(len(begin)):
        stop = end[document]
        for at in range(begin[document], stop):
            if data[at] == 0x5B and _citation_end(data, at, stop, table, edit, needed) > at:
                found[document] = True
                break
    return found


@numba.njit(cache=True, nogil=True)
def _strip_citations(
    data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray, edit: np.ndarray, needed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    stripped = np.empty((end - begin).sum(), np.uint8)
    offsets = np.zeros(len(begin) + 1, np.int64)
    size = 0
    for document in range(len(begin)):
        at, stop = begin[document], end[document]
        copied = at  # everything before is in `stripped` or taken out
        while at < stop:
            behind = _citation_end(data, at, stop, table, edit, needed) if data[at] == 0x5B else at
            if behind > at:
                stripped[size : size + at - copied] = data[copied:at]
                size += at - copied
                copied = behind
            at = max(behind, at + 1)
        stripped[size : size + stop - copied] = data[copied:stop]
        size += stop - copied
        offsets[document + 1] = size
    return stripped[:size], offsets
