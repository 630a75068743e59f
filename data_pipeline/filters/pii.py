"""Personal data: e-mail, phone, IP addresses, cards and national ids (`personal_data.py`), masked or dropped.

Llama 2 left out sites that are known to hold a high volume of personal information (Touvron et al. 2023,
arXiv:2307.09288, section 2.1); dolma masks up to 5 items of a document and drops documents with more.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.personal_data import COLON, DIGITS, KIND_NAMES, MAIL, SHAPED, Kind, kinds, match_at
from data_pipeline.filters.word_hashes import text_buffers
from llama_foundation.errors import ConfigError

NAME = "pii"
VERSION = 2

LONGEST_LOCAL_PART = 64  # bytes before the @, RFC 5321, section 4.5.3.1.1
_GAP = 4  # bytes between two digits of a number, such as the parenthesis and the no-break space in "(0) 20"


@dataclass
class PII:
    """What is found is counted by kind, then masked."""

    kinds: list[str] = field(default_factory=lambda: list(KIND_NAMES))
    mask: bool = True  # false: count only
    placeholders: dict[str, str] = field(
        default_factory=dict
    )  # kind -> what stands for it; default [EMAIL], [PHONE] ...
    max_items: int | None = None  # a document with more of them all is dropped
    max_per_kind: dict[str, int] = field(default_factory=dict)  # kind -> the same for one kind
    public_addresses_only: bool = True  # leave 192.168.1.1, ::1 and what else is nobody's

    def check(self) -> None:
        for setting, names in (
            ("kinds", self.kinds),
            ("placeholders", self.placeholders),
            ("max_per_kind", self.max_per_kind),
        ):
            for name in names:
                allowed = KIND_NAMES if setting == "kinds" else self.kinds
                if name not in allowed:
                    raise ConfigError(f"pii.{setting} names {name!r}; it must be one of {', '.join(allowed)}")
        limits = {"max_items": self.max_items} | {f"max_per_kind.{n}": each for n, each in self.max_per_kind.items()}
        for name, value in limits.items():
            if value is not None and value < 0:
                raise ConfigError(f"pii.{name}={value} must be at least 0")


@dataclass(frozen=True)
class Item:
    """One piece of personal data: bytes [start, end) of a text."""

    kind: str
    start: int
    end: int


def files(settings: PII) -> list[Path]:
    """Return the files whose content decides what is kept."""
    return []


def rules(settings: PII) -> list[Rule]:
    """Return the limits that are set."""
    limits = [Rule(f"too_many_{kind}", kind, maximum=most) for kind, most in settings.max_per_kind.items()]
    if settings.max_items is not None:
        limits.append(Rule("too_many", "items", maximum=settings.max_items))
    return limits


def measure(documents: Documents, settings: PII) -> Measurement:
    """Count the items of a batch by kind, and mask them."""
    texts = documents.batch["text"]
    found = find(texts, settings)
    counts = Counter(item.kind for items in found.values() for item in items)
    scores = {"items": np.zeros(len(documents))} | {kind: np.zeros(len(documents)) for kind in settings.max_per_kind}
    for row, items in found.items():
        scores["items"][row] = len(items)
        for kind in settings.max_per_kind:
            scores[kind][row] = sum(item.kind == kind for item in items)
    masked = _masked(texts, found, settings.placeholders) if settings.mask and found else None
    return Measurement(scores=scores, texts=masked, counts=dict(sorted(counts.items())))


def find(texts: pa.Array, settings: PII) -> dict[int, list[Item]]:
    """Return row -> its items in order, of the rows that have any."""
    table = _table(settings)
    offsets, data = text_buffers(texts)
    positions, begins = candidates(offsets, data)
    order = np.argsort(positions, kind="stable")
    positions, first = np.unique(positions[order], return_index=True)
    begins = np.bitwise_or.reduceat(begins[order], first) if len(first) else begins  # where two kinds may begin
    edges = np.searchsorted(positions, offsets)
    found = {}
    for row in np.flatnonzero(np.diff(edges)).tolist():
        start, end = int(offsets[row]), int(offsets[row + 1])
        some = slice(edges[row], edges[row + 1])
        places = (positions[some] - start).tolist()
        items = _items(data[start:end].tobytes(), places, begins[some].tolist(), table)
        if items:
            found[row] = items
    return found


def _table(settings: PII) -> tuple[Kind, ...]:
    return tuple(kind for kind in kinds(settings.public_addresses_only) if kind.name in settings.kinds)


def _items(text: bytes, places: list[int], begins: list[int], table: tuple[Kind, ...]) -> list[Item]:
    items = []
    free = 0  # behind the item before
    for place, bits in zip(places, begins, strict=True):
        if place >= free and (match := match_at(text, place, bits, table)):
            kind, free = match
            items.append(Item(kind, place, free))
    return items


def _masked(texts: pa.Array, found: dict[int, list[Item]], placeholders: dict[str, str]) -> pa.LargeStringArray:
    offsets, data = text_buffers(texts)
    content = memoryview(data)
    growth = np.zeros(len(texts), np.int64)
    pieces = []
    written = int(offsets[0])
    for row, items in found.items():
        base = int(offsets[row])
        for item in items:
            placeholder = placeholders.get(item.kind, f"[{item.kind.upper()}]").encode()
            pieces += [content[written : base + item.start], placeholder]
            written = base + item.end
            growth[row] += len(placeholder) - (item.end - item.start)
    pieces.append(content[written : int(offsets[-1])])
    sizes = np.diff(offsets) + growth
    new_offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(new_offsets), pa.py_buffer(b"".join(pieces)))


_OTHER, _DIGIT, _LETTER, _AT, _COLON, _OPENING, _UNDERSCORE = range(7)


def _byte_classes() -> np.ndarray:
    classes = np.zeros(256, np.uint8)
    for members, number in (
        (b"0123456789", _DIGIT),
        (b"@", _AT),
        (b":", _COLON),
        (b"+(", _OPENING),
        (b"_", _UNDERSCORE),
    ):
        classes[list(members)] = number
    classes[ord("A") : ord("Z") + 1] = classes[ord("a") : ord("z") + 1] = _LETTER
    return classes


def _membership(members: bytes) -> np.ndarray:
    table = np.zeros(256, np.bool_)
    table[list(members)] = True
    return table


_CLASSES = _byte_classes()
_LOCAL = _membership(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._%+'-")
_HEXADECIMAL = _membership(b"0123456789ABCDEFabcdef")
_BETWEEN = _membership(b" .-/()\xc2\xa0\xe2\x80\x90\x91\x92\x93\xaf")


def candidates(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (int64 positions in `data`, uint8 bits of MAIL, DIGITS, COLON, SHAPED) where an item may begin.

    No item begins elsewhere. A position may come twice, with different bits.
    """
    return _candidates(offsets, data, _CLASSES, _LOCAL, _HEXADECIMAL, _BETWEEN)


@numba.njit(cache=True, nogil=True)
def _candidates(offsets, data, classes, local, hexadecimal, between):
    positions = np.empty(1024, np.int64)
    begins = np.empty(1024, np.uint8)
    count = 0
    for document in range(offsets.size - 1):
        start, end = offsets[document], offsets[document + 1]
        for place in range(start, end):
            kind = classes[data[place]]
            if kind in (_OTHER, _LETTER, _UNDERSCORE):
                continue
            before = classes[data[place - 1]] if place > start else _OTHER
            if kind == _DIGIT and before == _DIGIT:
                continue
            if count + LONGEST_LOCAL_PART > positions.size:
                positions = np.concatenate((positions, np.empty_like(positions)))
                begins = np.concatenate((begins, np.empty_like(begins)))
            if kind == _DIGIT:
                if before == _LETTER or (place >= start + 2 and data[place - 1] == 0x2D):
                    first = _shaped_start(data, classes, start, place, end)
                    if first >= 0:
                        positions[count], begins[count] = first, SHAPED
                        count += 1
                if before != _LETTER and before != _UNDERSCORE:
                    bits = _number_bits(data, classes, between, place, end)
                    if bits:
                        positions[count], begins[count] = place, bits
                        count += 1
            elif kind == _OPENING:
                bits = _number_bits(data, classes, between, place, end) & DIGITS
                if bits:
                    positions[count], begins[count] = place, bits
                    count += 1
            elif kind == _COLON:
                first = _address_start(data, classes, hexadecimal, start, place, end)
                if first >= 0:
                    positions[count], begins[count] = first, COLON
                    count += 1
            elif place + 1 < end and (classes[data[place + 1]] == _DIGIT or classes[data[place + 1]] == _LETTER):
                first = place - 1
                while first >= start and place - first <= LONGEST_LOCAL_PART and local[data[first]]:
                    inside = _is_word(classes, data, first - 1) if first > start else False
                    if _is_word(classes, data, first) and not inside:
                        positions[count], begins[count] = first, MAIL
                        count += 1
                    first -= 1
    return positions[:count], begins[:count]


@numba.njit(cache=True, nogil=True, inline="always")
def _is_word(classes, data, place):
    return classes[data[place]] == _DIGIT or classes[data[place]] == _LETTER


@numba.njit(cache=True, nogil=True)
def _number_bits(data, classes, between, place, end):
    """Return what may begin at a digit, plus or parenthesis: 7 digits and small gaps, 4 and dots, 8 and a letter."""
    digits = leading = dots = gap = 0
    at = place if classes[data[place]] == _DIGIT else place + 1
    behind = at  # of the first run of digits
    while behind < end and behind - at < 17 and classes[data[behind]] == _DIGIT:
        behind += 1
    leading = behind - at
    while at < end and gap <= _GAP and digits < 7:
        byte = data[at]
        if classes[byte] == _DIGIT:
            digits += 1
            gap = 0
        elif between[byte]:
            gap += 1
            dots += byte == 0x2E
        else:
            break
        at += 1
    bits = 0
    if digits >= 7 or (digits >= 4 and dots >= 3):
        bits |= DIGITS
    if leading >= 17 or (leading == 8 and behind < end and (classes[data[behind]] == _LETTER or data[behind] == 0x2D)):
        bits |= SHAPED
    return bits


@numba.njit(cache=True, nogil=True)
def _shaped_start(data, classes, start, place, end):
    """Return where a word begins whose first digit is at `place`: behind 2 or 6 letters or X, Y or Z; −1: nowhere."""
    first = place - 1
    if data[first] == 0x2D:
        first -= 1
    least = max(start, first - 6)
    last = first
    while first >= least and classes[data[first]] == _LETTER:
        first -= 1
    letters = last - first
    first += 1
    if letters == 0 or (first > start and classes[data[first - 1]] in (_DIGIT, _LETTER, _UNDERSCORE)):
        return -1
    if letters == 1 and data[first] & 0xDF in (0x58, 0x59, 0x5A):
        return first
    if data[place - 1] != 0x2D and letters in (2, 6) and place + 1 < end and classes[data[place + 1]] == _DIGIT:
        return first
    return -1


@numba.njit(cache=True, nogil=True)
def _address_start(data, classes, hexadecimal, start, place, end):
    """Return where 1 to 4 hexadecimal digits begin before a colon that another one follows closely; −1: nowhere."""
    first = place - 1
    while first >= start and place - first <= 5 and hexadecimal[data[first]]:
        first -= 1
    first += 1
    if not 1 <= place - first <= 4:
        return -1
    if first > start and (_is_word(classes, data, first - 1) or data[first - 1] in (0x3A, 0x2E)):
        return -1
    following = place + 1
    while following < end and following - place <= 4 and hexadecimal[data[following]]:
        following += 1
    return first if following < end and data[following] == 0x3A else -1
