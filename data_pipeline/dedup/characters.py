"""What each character is to a comparison of texts: two small tables that the compiled kernels look up.

Characters from U+20000 on are not in the tables: the ideographs up to U+3FFFF are characters of a script without
spaces, what lies behind them (tags, variation selectors, private use) is dropped.
"""

import unicodedata
from functools import lru_cache

import numba
import numpy as np

from data_pipeline.text.characters import SPACE as IS_SPACE
from data_pipeline.text.characters import UNSPACED_RANGES, properties

TABLE_SIZE = 0x20000

SPACE = 0
DROPPED = 1
ALONE = 1 << 31  # flag: a character of a script without spaces
DIGIT = 1 << 30  # flag: a decimal digit
CODE_POINT = (1 << 21) - 1

_KEEPS_FORM = 0x300  # below it no character changes or joins under NFC


@lru_cache(maxsize=2)
def folding(fold_digits: bool = False) -> np.ndarray:
    """Return uint32 [TABLE_SIZE]: SPACE, DROPPED, or the lower-case code point with its flags.

    White space and control characters are SPACE. Letters, marks and numbers (Unicode categories L, M, N) stay, in lower
    case (the first code point of `str.lower`). Everything else, punctuation and symbols above all, is DROPPED.

    Args:
        fold_digits: whether every decimal digit is "0".
    """
    table = np.full(TABLE_SIZE, DROPPED, np.uint32)
    for code_point in range(TABLE_SIZE):
        character = chr(code_point)
        category = unicodedata.category(character)
        if character.isspace() or category == "Cc":
            table[code_point] = SPACE
        elif category[0] in "LMN":
            folded = "0" if fold_digits and category == "Nd" else character.lower()[0]
            table[code_point] = ord(folded) | (DIGIT if category == "Nd" else 0)
    for first, last in UNSPACED_RANGES:
        table[first : last + 1][table[first : last + 1] > DROPPED] |= ALONE
    return table


@lru_cache(maxsize=1)
def composing() -> np.ndarray:
    """Return bool [TABLE_SIZE]: whether a text with this character may differ from its NFC.

    True for characters that NFC replaces, that carry a combining class, or that can be the second part of a
    composition (Unicode Standard Annex 15, quick check No and Maybe).
    """
    table = np.zeros(TABLE_SIZE, bool)
    for code_point in range(TABLE_SIZE):
        character = chr(code_point)
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<") and int(parts[1], 16) < TABLE_SIZE:
            table[int(parts[1], 16)] = True
        if unicodedata.combining(character) or not (
            0xD800 <= code_point < 0xE000 or unicodedata.is_normalized("NFC", character)
        ):
            table[code_point] = True
    table[0x1160:0x1200] = True  # vowels and final consonants of Hangul, which compose by arithmetic
    table[:_KEEPS_FORM] = False
    return table


@lru_cache(maxsize=1)
def white_space() -> np.ndarray:
    """Return bool [TABLE_SIZE]: whether `str.split` splits there."""
    return (properties()[:TABLE_SIZE] & IS_SPACE) != 0


@numba.njit(inline="always")
def decode(data: np.ndarray, place: int) -> tuple[int, int]:
    """Return the code point that begins at `place` of valid UTF-8 (uint8 [bytes]), and where the next one begins."""
    first = np.int64(data[place])
    if first < 0x80:
        return first, place + 1
    second = np.int64(data[place + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, place + 2
    third = np.int64(data[place + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, place + 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | (np.int64(data[place + 3]) & 0x3F), place + 4


@numba.njit(inline="always")
def fold(code_point: int, table: np.ndarray) -> int:
    """Return the entry of `folding()`, also for characters behind the table."""
    if code_point < TABLE_SIZE:
        return np.int64(table[code_point])
    return code_point | ALONE if code_point < 0x40000 else DROPPED
