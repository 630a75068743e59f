"""What there is of single characters in every document, in one pass."""

import numba
import numpy as np

from data_pipeline.text.characters import SPACE, UNSPACED, decode, width

COLUMNS = ("characters", "visible", "unspaced", "newlines", "hashes", "ellipses", "curly_brackets", "citations")
"""
characters      code points
visible         code points that are not white space: the characters of all words together
unspaced        code points of scripts without spaces
hashes          "#"
ellipses        "..." as str.count finds them, and "…"
curly_brackets  "{"
citations       "[" that may begin a citation mark: a digit, an e, a c or no ASCII follows
"""


@numba.njit(cache=True, nogil=True)
def census(data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return int64 [len(COLUMNS), documents]."""
    found = np.zeros((8, len(begin)), np.int64)
    for document in range(len(begin)):
        characters, visible, unspaced, newlines, hashes, ellipses, curly, citations, dots = 0, 0, 0, 0, 0, 0, 0, 0, 0
        at, stop = begin[document], end[document]
        while at < stop:
            byte = data[at]
            characters += 1
            if byte >= 0x80:
                code_point = decode(data, at)
                bits = table[code_point]
                visible += not bits & SPACE
                unspaced += (bits & UNSPACED) != 0
                ellipses += code_point == 0x2026
                dots = 0
                at += width(byte)
                continue
            at += 1
            if byte > 0x20 and byte != 0x7F and byte != 0x2E and byte != 0x23 and byte != 0x5B and byte != 0x7B:
                visible += 1
                dots = 0
                continue
            visible += not table[byte] & SPACE
            dots = dots + 1 if byte == 0x2E else 0
            if dots == 3:
                ellipses += 1
                dots = 0
            newlines += byte == 0x0A
            hashes += byte == 0x23
            curly += byte == 0x7B
            if byte == 0x5B and at < stop:
                citations += data[at] == 0x65 or data[at] == 0x63 or 0x30 <= data[at] <= 0x39 or data[at] >= 0x80
        row = (characters, visible, unspaced, newlines, hashes, ellipses, curly, citations)
        for column in range(8):
            found[column, document] = row[column]
    return found
