"""Word lists: how much of a text is on the list of its language.

Entries are words or phrases and match whole words only (`word_hashes.py`), whatever their case; in scripts without
spaces between words every character counts as one, so there an entry matches inside of longer words too.
"""

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.filters.word_hashes import extend, words_of
from llama_foundation.errors import DataError

SHIPPED = Path(__file__).parent / "data" / "ldnoobw.tsv.gz"
LONGEST_ENTRY = 32  # words


@dataclass(frozen=True)
class Lexicon:
    """Open-addressing tables of the entries of one language; slot 0 of a key means empty."""

    last_words: np.ndarray  # uint64 [power of 2]: the last word of an entry
    lengths: np.ndarray  # uint32 [same]: bit n − 1 for entries of n words that end so
    entries: np.ndarray  # uint64 [power of 2]: the n-gram
    weights: np.ndarray  # float64 [same]


def entries_of(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read `language<TAB>entry` or `language<TAB>entry<TAB>weight` lines; a weight is 1 where none is given.

    Raises:
        DataError: the file cannot be read or a line is something else.
    """
    entries: dict[str, list[tuple[str, float]]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\n").split("\t")
                if not line.strip() or line.startswith("#"):
                    continue
                try:
                    language, entry = fields[:2]
                    [weight] = fields[2:] or ["1"]
                    if not (language.strip() and entry.strip() and 0 < float(weight) < 1e9):
                        raise ValueError
                except ValueError:
                    raise DataError(
                        f"{path}, line {number}: {line.strip()!r} is not language<TAB>entry, with a weight above 0 "
                        "behind another tab or without one"
                    ) from None
                entries.setdefault(language.strip().lower(), []).append((entry, float(weight)))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: the word list cannot be read: {error}") from error
    return entries


@lru_cache(maxsize=4)
def load_lexicons(path: Path) -> dict[str, Lexicon]:
    """Return language -> lexicon.

    Raises:
        DataError: the file cannot be read, or an entry has no word or too many.
    """
    return {language: _build(path, language, entries) for language, entries in entries_of(path).items()}


def _build(path: Path, language: str, entries: list[tuple[str, float]]) -> Lexicon:
    offsets, words = words_of(pa.array([entry for entry, _ in entries], pa.large_string()))
    counts = np.diff(offsets)
    for (entry, _), count in zip(entries, counts.tolist(), strict=True):
        if not 1 <= count <= LONGEST_ENTRY:
            raise DataError(f"{path}: entry {entry!r} ({language}) has {count} words; it needs 1 to {LONGEST_ENTRY}")
    size = 1 << int(4 * len(entries)).bit_length()
    tables = np.zeros(size, np.uint64), np.zeros(size, np.uint32), np.zeros(size, np.uint64), np.zeros(size)
    _fill(offsets, words, np.array([weight for _, weight in entries]), *tables)
    return Lexicon(*tables)


def matches(texts: pa.Array, lexicon: Lexicon) -> tuple[np.ndarray, np.ndarray]:
    """Return (float64 [texts]: the sum of the weights of the entries found, int64 [texts]: words).

    At each word the longest entry that ends there counts; it may overlap others.
    """
    offsets, words = words_of(texts)
    sums = _matches(offsets, words, lexicon.last_words, lexicon.lengths, lexicon.entries, lexicon.weights)
    return sums, np.diff(offsets)


@numba.njit(cache=True, nogil=True, inline="always")
def _slot(keys, key):
    """Return where `key` is, or the empty slot where it belongs."""
    mask = np.uint64(keys.size - 1)
    slot = (key ^ (key >> np.uint64(32))) & mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _fill(offsets, words, entry_weights, last_words, lengths, entries, weights):
    for entry in range(offsets.size - 1):
        first, last = offsets[entry], offsets[entry + 1]
        gram = words[first]
        for index in range(first + 1, last):
            gram = extend(gram, words[index])
        slot = _slot(last_words, words[last - 1])
        last_words[slot] = words[last - 1]
        lengths[slot] |= np.uint32(1) << np.uint32(last - first - 1)
        slot = _slot(entries, gram)
        entries[slot] = gram
        weights[slot] = max(weights[slot], entry_weights[entry])


@numba.njit(cache=True, nogil=True)
def _matches(offsets, words, last_words, lengths, entries, weights):
    sums = np.zeros(offsets.size - 1)
    for document in range(offsets.size - 1):
        first = offsets[document]
        for index in range(first, offsets[document + 1]):
            bits = lengths[_slot(last_words, words[index])]
            length = LONGEST_ENTRY
            while bits and length > 0:
                if bits >> np.uint32(length - 1) & np.uint32(1) and index - length + 1 >= first:
                    gram = words[index - length + 1]
                    for other in range(index - length + 2, index + 1):
                        gram = extend(gram, words[other])
                    weight = weights[_slot(entries, gram)]
                    if weight > 0:
                        sums[document] += weight
                        break
                length -= 1
    return sums
