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


_VISIBLE, _NOTED = 1, 2


@numba.njit(cache=True, nogil=True)
def _kinds(table: np.ndarray) -> np.ndarray:
    """Return uint8 [bytes]: _VISIBLE for ASCII that is no white space, _NOTED for bytes that need a closer look."""
    kinds = np.full(256, _NOTED, np.uint8)
    for byte in range(0x80):
        noted = byte == 0x0A or byte == 0x23 or byte == 0x2E or byte == 0x5B or byte == 0x7B
        kinds[byte] = (0 if table[byte] & SPACE else _VISIBLE) | (_NOTED if noted else 0)
    return kinds


@numba.njit(cache=True, nogil=True)
def census(data: np.ndarray, begin: np.ndarray, end: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return int64 [len(COLUMNS), documents]."""
    found = np.zeros((8, len(begin)), np.int64)
    kinds = _kinds(table)
    for document in range(len(begin)):
        continuing, visible, unspaced, newlines, hashes, ellipses, curly, citations = 0, 0, 0, 0, 0, 0, 0, 0
        at, stop = begin[document], end[document]
        while at < stop:
            byte = data[at]
            kind = kinds[byte]
            visible += kind & _VISIBLE
            if not kind & _NOTED:
                at += 1
            elif byte >= 0x80:
                code_point = decode(data, at)
                bits = table[code_point]
                visible += not bits & SPACE
                unspaced += (bits & UNSPACED) != 0
                ellipses += code_point == 0x2026
                continuing += width(byte) - 1
                at += width(byte)
            elif byte == 0x2E:
                is_ellipsis = at + 2 < stop and data[at + 1] == 0x2E and data[at + 2] == 0x2E
                ellipses += is_ellipsis
                visible += 2 * is_ellipsis
                at += 3 if is_ellipsis else 1
            else:
                newlines += byte == 0x0A
                hashes += byte == 0x23
                curly += byte == 0x7B
                at += 1
                if byte == 0x5B and at < stop:
                    citations += data[at] == 0x65 or data[at] == 0x63 or 0x30 <= data[at] <= 0x39 or data[at] >= 0x80
        characters = end[document] - begin[document] - continuing
        row = (characters, visible, unspaced, newlines, hashes, ellipses, curly, citations)
        for column in range(8):
            found[column, document] = row[column]
    return found
