"""Lines and paragraphs as byte ranges."""

import numba
import numpy as np

from data_pipeline.text.characters import SPACE, decode, width
from data_pipeline.text.hashing import hash_bytes

NEWLINE = 10

LineColumns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""starts, ends int64 [lines]; characters int32; hashes uint64 [lines]; first, last int64 [documents]."""


@numba.njit(cache=True, nogil=True)
def count_lines(data: np.ndarray, begin: np.ndarray, end: np.ndarray) -> int:
    """Return how many lines the documents have together, blank ones too."""
    count = len(begin)
    for document in range(len(begin)):
        for at in range(begin[document], end[document]):
            count += data[at] == NEWLINE
    return count


@numba.njit(cache=True, nogil=True, inline="always")
def _is_space(data: np.ndarray, at: int, table: np.ndarray) -> bool:
    byte = data[at]
    return table[byte if byte < 0x80 else decode(data, at)] & SPACE != 0


@numba.njit(cache=True, nogil=True)
def split_lines(data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray, strip: bool) -> LineColumns:
    """Cut every document at newlines.

    Args:
        table: uint8 [code points], characters.properties().
        strip: without the white space around each line, and without blank lines; else every line as it is.
    """
    most = count_lines(data, begin, end)
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    characters, hashes = np.empty(most, np.int32), np.empty(most, np.uint64)
    first, last = np.empty(len(begin), np.int64), np.empty(len(begin), np.int64)
    line = 0
    for document in range(len(begin)):
        first[document] = line
        at, stop = begin[document], end[document]
        while at <= stop:
            stop_line = at
            while stop_line < stop and data[stop_line] != NEWLINE:
                stop_line += 1
            start, finish = at, stop_line
            if strip:
                while start < finish and _is_space(data, start, table):
                    start += width(data[start])
                while start < finish:
                    before = finish - 1
                    while data[before] & 0xC0 == 0x80:
                        before -= 1
                    if not _is_space(data, before, table):
                        break
                    finish = before
            if finish > start or not strip:
                starts[line], ends[line] = start, finish
                count = 0
                for each in range(start, finish):
                    count += data[each] & 0xC0 != 0x80
                characters[line], hashes[line] = count, hash_bytes(data, start, finish)
                line += 1
            at = stop_line + 1
        last[document] = line
    return starts[:line], ends[:line], characters[:line], hashes[:line], first, last


@numba.njit(cache=True, nogil=True)
def join_paragraphs(data: np.ndarray, line_columns: LineColumns) -> LineColumns:
    """Join stripped lines between which there is no blank line: re.split(r"\\n\\s*\\n"), stripped, none empty."""
    line_starts, line_ends, line_characters, _, line_first, line_last = line_columns
    starts, ends = np.empty(len(line_starts), np.int64), np.empty(len(line_starts), np.int64)
    characters, hashes = np.empty(len(line_starts), np.int32), np.empty(len(line_starts), np.uint64)
    first, last = np.empty(len(line_first), np.int64), np.empty(len(line_first), np.int64)
    paragraph = 0
    for document in range(len(line_first)):
        first[document] = paragraph
        for line in range(line_first[document], line_last[document]):
            newlines, between = 2, 0
            if line > line_first[document]:
                newlines = 0
                for at in range(line_ends[line - 1], line_starts[line]):
                    newlines += data[at] == NEWLINE
                    between += data[at] & 0xC0 != 0x80  # the first byte of a character
            if newlines > 1:
                starts[paragraph], characters[paragraph] = line_starts[line], 0
                paragraph += 1
            else:
                characters[paragraph - 1] += between
            ends[paragraph - 1] = line_ends[line]
            characters[paragraph - 1] += line_characters[line]
        last[document] = paragraph
    for each in range(paragraph):
        hashes[each] = hash_bytes(data, starts[each], ends[each])
    return starts[:paragraph], ends[:paragraph], characters[:paragraph], hashes[:paragraph], first, last
