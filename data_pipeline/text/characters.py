"""What a code point is, as bits that compiled kernels look up; the truth is Python's own Unicode data.

UTF-8 comes from Arrow, which holds no invalid bytes, so `decode` does not check any.
"""

import unicodedata
from functools import cache

import numba
import numpy as np

SPACE = 1  # str.isspace: what str.split and str.strip take for white space
LETTER = 2  # str.isalpha
DIGIT = 4  # str.isdecimal
UPPER = 8  # str.isupper
UNSPACED = 16  # of a script that does not mark words with spaces
MARK = 32  # categories Mn, Mc, Me: belongs to the character before
WORD = 64  # str.isalnum, and the underscore: \w of the module re

CODE_POINTS = 0x110000

UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
    (0xFF66, 0xFF9D),  # half-width Katakana
)
"""First and last code point of the scripts in which words are not marked by spaces."""

_MARK_PLANES = (range(0x0300, 0x20000), range(0xE0100, 0xE01F0))
"""Everything outside of them is assigned to no mark; a test looks at every code point."""


@cache
def properties() -> np.ndarray:
    """Return uint8 [code points]: the bits above of every code point."""
    table = np.zeros(CODE_POINTS, np.uint8)
    characters = np.arange(CODE_POINTS, dtype=np.uint32).view("U1")
    table[np.strings.isspace(characters)] |= SPACE
    table[np.strings.isalpha(characters)] |= LETTER
    table[np.strings.isdecimal(characters)] |= DIGIT
    table[np.strings.isupper(characters)] |= UPPER
    table[np.strings.isalnum(characters)] |= WORD
    table[ord("_")] |= WORD
    for first, last in UNSPACED_RANGES:
        table[first : last + 1] |= UNSPACED
    for plane in _MARK_PLANES:
        for code_point in plane:
            if unicodedata.category(chr(code_point))[0] == "M":
                table[code_point] |= MARK
    return table


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script in which words are not marked by spaces."""
    return any(first <= ord(character) <= last for first, last in UNSPACED_RANGES)


@cache
def lowercase() -> np.ndarray:
    """Return int32 [code points]: str.lower of every code point, itself where that is more than one."""
    table = np.arange(CODE_POINTS, dtype=np.int32)
    for code_point in range(0x20000):  # nothing above has case
        lowered = chr(code_point).lower()
        if len(lowered) == 1:
            table[code_point] = ord(lowered)
    return table


def lowered(text: str) -> str:
    """Return `text` with every character in lower case, one for one."""
    return text.translate({ord(c): c.lower() for c in set(text) if len(c.lower()) == 1})


@numba.njit(cache=True, nogil=True, inline="always")
def width(byte: int) -> int:
    """Return how many bytes the character has that starts with `byte`."""
    if byte < 0x80:
        return 1
    if byte < 0xE0:
        return 2
    return 3 if byte < 0xF0 else 4


@numba.njit(cache=True, nogil=True, inline="always")
def decode(data: np.ndarray, at: int) -> int:
    """Return the code point of the character that starts at byte `at`."""
    first = np.int64(data[at])
    if first < 0x80:
        return first
    if first < 0xE0:
        return (first & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F)
    middle = (np.int64(data[at + 1]) & 0x3F) << 6 | (np.int64(data[at + 2]) & 0x3F)
    if first < 0xF0:
        return (first & 0x0F) << 12 | middle
    return (first & 0x07) << 18 | middle << 6 | (np.int64(data[at + 3]) & 0x3F)
