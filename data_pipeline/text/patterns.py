"""Many phrases searched at once, without regard to case: an Aho-Corasick automaton over UTF-8.

Case is folded one character for one (characters.lowered), in the phrases and in the text. Time is linear in the text
and in the matches, memory is 1 KiB per byte of the phrases.
"""

from collections import deque
from dataclasses import dataclass

import numba
import numpy as np

from data_pipeline.text.characters import UNSPACED, WORD, decode, lowercase, lowered, properties, width
from data_pipeline.text.texts import Texts

_EIGHT = np.uint64(8)


@dataclass(frozen=True)
class Patterns:
    """A compiled list of phrases.

    next      int32 [states, 256], state and byte to state
    pattern   int32 [states], the phrase that a state spells, or -1
    ending    int32 [states], the state of the longest phrase that ends there, or 0
    shorter   int32 [states], the state of the longest phrase that ends there and is not the state's own, or 0
    length    int64 [patterns], characters
    begins    bool [65536], whether a phrase, or a character that needs a closer look, may begin with these two bytes
    """

    next: np.ndarray
    pattern: np.ndarray
    ending: np.ndarray
    shorter: np.ndarray
    length: np.ndarray
    begins: np.ndarray


def compile_patterns(phrases: list[str]) -> Patterns:
    """Compile different phrases, none of them empty."""
    encoded = [lowered(phrase).encode() for phrase in phrases]
    assert all(encoded) and len(set(encoded)) == len(encoded)
    children: list[dict[int, int]] = [{}]
    pattern = [-1]
    for number, phrase in enumerate(encoded):
        state = 0
        for byte in phrase:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                pattern.append(-1)
            state = children[state][byte]
        pattern[state] = number
    table = np.zeros((len(children), 256), np.int32)
    shorter = np.zeros(len(children), np.int32)
    fallback = [0] * len(children)
    waiting = deque([0])
    while waiting:
        state = waiting.popleft()
        if state:
            table[state] = table[fallback[state]]
            back = fallback[state]
            shorter[state] = back if pattern[back] >= 0 else shorter[back]
        for byte, child in children[state].items():
            fallback[child] = int(table[state, byte]) if state else 0
            waiting.append(child)
        for byte, child in children[state].items():
            table[state, byte] = child
    table[:, ord("A") : ord("Z") + 1] = table[:, ord("a") : ord("z") + 1]
    spelled = np.array(pattern, np.int32)
    ending = np.where(spelled >= 0, np.arange(len(pattern)), shorter).astype(np.int32)
    return Patterns(table, spelled, ending, shorter, np.array(list(map(len, phrases)), np.int64), _begins(encoded))


def _begins(phrases: list[bytes]) -> np.ndarray:
    """Return `Patterns.begins`; every byte outside of ASCII may be a letter in the other case."""
    pairs = np.zeros((256, 256), bool)
    pairs[0x80:] = True
    for phrase in phrases:
        for first in {phrase[0], ord(chr(phrase[0]).upper())} if phrase[0] < 0x80 else ():
            if len(phrase) == 1:
                pairs[first] = True
            else:
                pairs[first, [phrase[1], *phrase[1:2].upper()]] = True
                pairs[first, 0x80:] = True
    return pairs.ravel()


def find(texts: Texts, patterns: Patterns) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [matches], the byte behind each match, ascending; int32 [matches], which phrase."""
    columns = patterns.next, patterns.pattern, patterns.ending, patterns.shorter, patterns.begins, lowercase()
    count = 1024
    while True:
        positions, found = np.empty(count, np.int64), np.empty(count, np.int32)
        count = _find(texts.data, texts.begin, texts.end, *columns, positions, found)
        if count <= len(positions):
            order = np.argsort(positions[:count], kind="stable")
            return positions[order], found[order]


def count_between(positions: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return int64 [ranges]: how many of the ascending `positions` lie in (begin, end] of each range."""
    return np.searchsorted(positions, end, "right") - np.searchsorted(positions, begin, "right")


def count_whole(texts: Texts, patterns: Patterns) -> np.ndarray:
    """Return int64 [documents]: how often a phrase stands by itself.

    No letter, digit or underscore is beside it, except one of a script without spaces beside another of those. Of
    phrases that begin in one another all count.
    """
    return _count_whole(
        texts.data,
        texts.begin,
        texts.end,
        patterns.next,
        patterns.pattern,
        patterns.ending,
        patterns.shorter,
        patterns.length,
        lowercase(),
        properties(),
    )


@numba.njit(cache=True, nogil=True)
def _wide_step(data: np.ndarray, at: int, state: int, table: np.ndarray, lower: np.ndarray) -> int:
    """Return the state behind the character of several bytes at byte `at`: in lower case, byte by byte."""
    code_point = np.int64(lower[decode(data, at)])
    if code_point < 0x80:
        return np.int64(table[state, code_point])
    if code_point < 0x800:
        state = np.int64(table[state, 0xC0 | code_point >> 6])
    else:
        if code_point < 0x10000:
            state = np.int64(table[state, 0xE0 | code_point >> 12])
        else:
            state = np.int64(table[state, 0xF0 | code_point >> 18])
            state = np.int64(table[state, 0x80 | code_point >> 12 & 0x3F])
        state = np.int64(table[state, 0x80 | code_point >> 6 & 0x3F])
    return np.int64(table[state, 0x80 | code_point & 0x3F])


@numba.njit(cache=True, nogil=True)
def _find(
    data: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    table: np.ndarray,
    pattern: np.ndarray,
    ending: np.ndarray,
    shorter: np.ndarray,
    begins: np.ndarray,
    lower: np.ndarray,
    positions: np.ndarray,
    found: np.ndarray,
) -> int:
    """Write as many matches as there is room for; return how many there are."""
    count = 0
    for document in range(len(begin)):
        state, at, stop = np.int64(0), begin[document], end[document]
        while at < stop:
            if state == 0:  # most of the text: nothing has begun
                while at < stop - 1 and not begins[np.uint64(data[at]) << _EIGHT | np.uint64(data[at + 1])]:
                    at += 1
            if data[at] < 0x80:
                state = np.int64(table[state, data[at]])
                at += 1
            else:
                state = _wide_step(data, at, state, table, lower)
                at += width(data[at])
            hit = ending[state]
            while hit:
                if count < len(positions):
                    positions[count], found[count] = at, pattern[hit]
                count += 1
                hit = shorter[hit]
    return count


@numba.njit(cache=True, nogil=True, inline="always")
def _continues(data: np.ndarray, left: int, right: int, bits: np.ndarray) -> bool:
    """Return whether the characters at bytes `left` and `right`, side by side, belong to one word."""
    one, other = bits[decode(data, left)], bits[decode(data, right)]
    return (one & WORD) != 0 and (other & WORD) != 0 and not (one & UNSPACED and other & UNSPACED)


@numba.njit(cache=True, nogil=True)
def _before(data: np.ndarray, at: int) -> int:
    """Return where the character begins that ends before byte `at`."""
    at -= 1
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@numba.njit(cache=True, nogil=True)
def _count_whole(
    data: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    table: np.ndarray,
    pattern: np.ndarray,
    ending: np.ndarray,
    shorter: np.ndarray,
    length: np.ndarray,
    lower: np.ndarray,
    bits: np.ndarray,
) -> np.ndarray:
    counts = np.zeros(len(begin), np.int64)
    for document in range(len(begin)):
        state, at, stop = np.int64(0), begin[document], end[document]
        while at < stop:
            if data[at] < 0x80:
                state = np.int64(table[state, data[at]])
                at += 1
            else:
                state = _wide_step(data, at, state, table, lower)
                at += width(data[at])
            hit = ending[state]
            while hit:
                start = at
                for _ in range(length[pattern[hit]]):  # bytes may differ between the cases of a letter
                    start = _before(data, start)
                alone = start == begin[document] or not _continues(data, _before(data, start), start, bits)
                if alone and (at == stop or not _continues(data, _before(data, at), at, bits)):
                    counts[document] += 1
                hit = shorter[hit]
    return counts
