"""Where documents and examples say the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.decontaminate.benchmarks import Index
from data_pipeline.decontaminate.settings import Rules
from data_pipeline.dedup.windows import window_hashes
from data_pipeline.dedup.word_spans import slices, word_spans

MATCHES = pa.schema(
    [
        ("row", pa.int64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("gram", pa.int64()),
        ("place", pa.int64()),
        ("length", pa.int64()),
    ]
)
"""A document (row of its block), the bytes of its text that match, the n-gram of the index they begin with, and the
words of the examples that they match: `length` from `place` on."""


@dataclass(frozen=True)
class Matches:
    """Columns of MATCHES."""

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    gram: np.ndarray
    place: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Matches":
        return cls(*(table[name].to_numpy() for name in MATCHES.names))

    def table(self) -> pa.Table:
        return pa.table([getattr(self, name) for name in MATCHES.names], schema=MATCHES)

    def select(self, keep: np.ndarray) -> "Matches":
        return Matches(*(getattr(self, name)[keep] for name in MATCHES.names))


def find_matches(batch: pa.RecordBatch, index: Index, rules: Rules) -> Matches:
    """Return every place where a document and an example share an n-gram, extended over `rules.mismatches` words."""
    sieve = index.sieve()
    found = [Matches(*(np.zeros(0, np.int64) for _ in MATCHES.names))]
    for first_row, part in slices(batch):
        words = word_spans(part["text"], folded=True)
        first = window_hashes(words.first, rules.ngram)
        windows = np.flatnonzero(sieve[first & np.uint64(len(sieve) - 1)])
        rows = np.searchsorted(words.offsets, windows, "right") - 1
        inside = windows + rules.ngram <= words.offsets[rows + 1]
        windows, rows = windows[inside], rows[inside]
        if not len(windows):
            continue
        grams = index.find(first[windows], window_hashes(words.second, rules.ngram)[windows])
        known = grams >= 0
        windows, rows, grams = windows[known], rows[known], grams[known]
        times = index.starts[grams + 1] - index.starts[grams]
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        places = index.places[np.repeat(index.starts[grams], times) + within]
        windows, rows, grams = (np.repeat(each, times) for each in (windows, rows, grams))
        lengths = _extend(
            words.first,
            words.offsets[rows + 1],
            windows,
            index.words,
            index.offsets[index.example_of(places) + 1],
            places,
            rules.ngram,
            rules.mismatches,
        )
        starts = words.starts[windows] - words.text_offsets[rows]
        ends = words.ends[windows + lengths - 1] - words.text_offsets[rows]
        found.append(Matches(rows + first_row, starts, ends, grams, places, lengths))
    return Matches(*(np.concatenate([getattr(each, name) for each in found]) for name in MATCHES.names))


@numba.njit(cache=True, nogil=True)
def _extend(
    words: np.ndarray,
    word_ends: np.ndarray,
    windows: np.ndarray,
    others: np.ndarray,
    other_ends: np.ndarray,
    places: np.ndarray,
    ngram: int,
    mismatches: int,
) -> np.ndarray:
    """Return int64 [matches]: how many words from words[window] and others[place] on are the same but for up to
    `mismatches` of them, the first `ngram` and the last not among those."""
    lengths = np.full(len(windows), ngram, np.int64)
    for match in range(len(windows)):
        room = min(word_ends[match] - windows[match], other_ends[match] - places[match])
        left = mismatches
        for step in range(ngram, room):
            if words[windows[match] + step] == others[places[match] + step]:
                lengths[match] = step + 1
            elif left == 0:
                break
            else:
                left -= 1
    return lengths


def contaminating(matches: Matches, index: Index, min_share: float) -> np.ndarray:
    """Return bool [matches]: whether its document matches at least `min_share` of the words of its example."""
    examples = index.example_of(matches.place)
    order = np.lexsort((matches.place, examples, matches.row))
    row, example = matches.row[order], examples[order]
    heads = np.ones(len(order), bool)
    heads[1:] = (row[1:] != row[:-1]) | (example[1:] != example[:-1])
    pair = np.cumsum(heads) - 1
    covered = _covered(pair, matches.place[order], matches.length[order])
    sizes = index.offsets[example[heads] + 1] - index.offsets[example[heads]]
    enough = covered >= min_share * sizes
    result = np.zeros(len(order), bool)
    result[order] = enough[pair]
    return result


@numba.njit(cache=True, nogil=True)
def _covered(group: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return int64 [groups]: the size of the union of each group's ranges, which ascend by start within it."""
    covered = np.zeros(group[-1] + 1 if len(group) else 0, np.int64)
    end = np.int64(0)
    for each in range(len(group)):
        if each == 0 or group[each] != group[each - 1]:
            end = start[each]
        covered[group[each]] += max(0, start[each] + length[each] - max(end, start[each]))
        end = max(end, start[each] + length[each])
    return covered


def matched_words(place: np.ndarray, length: np.ndarray, index: Index) -> np.ndarray:
    """Return int64 [examples]: how many words of each are in some match; `place` ascends."""
    examples = index.example_of(place)
    covered = np.zeros(len(index.benchmarks), np.int64)
    if len(place):
        heads = np.r_[True, examples[1:] != examples[:-1]]
        covered[examples[heads]] = _covered(np.cumsum(heads) - 1, place, length)
    return covered


def longest(places: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return every place once, ascending, with the greatest of its lengths."""
    place, length = np.concatenate(places), np.concatenate(lengths)
    order = np.lexsort((-length, place))
    place, length = place[order], length[order]
    heads = np.ones(len(place), bool)
    heads[1:] = place[1:] != place[:-1]
    return place[heads], length[heads]
