"""Gopher's repetition rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1, "Repetition removal", table A1).

Where the paper leaves a choice, ours is:
- a line, paragraph or n-gram is a duplicate from its second occurrence on; the first one is not counted;
- lines and paragraphs are compared without the white space around them, blank ones do not exist;
- the shares of characters are taken over the characters of all lines, of all paragraphs, or of all words;
- the most frequent n-gram must occur at least twice; of equally frequent ones the longest in characters counts;
- a word inside several duplicated n-grams is counted once.
The n-gram rules need words and abstain for scripts without spaces.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipeline.document import Documents, TextView
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.verdict import Verdict, measure_each

NAME = "gopher_repetition"
VERSION = 1

TOP_SIZES = (2, 3, 4)
DUPLICATED_SIZES = (5, 6, 7, 8, 9, 10)
SCORES = [
    *(f"{NAME}.{name}" for name in ("lines", "paragraphs", "line_characters", "paragraph_characters")),
    *(f"{NAME}.top_{n}_gram" for n in TOP_SIZES),
    *(f"{NAME}.duplicated_{n}_grams" for n in DUPLICATED_SIZES),
]


@dataclass
class GopherRepetition:
    """Largest shares allowed, table A1's unless a preset says otherwise."""

    max_lines: float = 0.30
    max_paragraphs: float = 0.30
    max_line_characters: float = 0.20
    max_paragraph_characters: float = 0.20
    max_top_ngrams: list[float] = field(default_factory=lambda: [0.20, 0.18, 0.16])  # of 2, 3, 4 words
    max_duplicated_ngrams: list[float] = field(  # of 5 to 10 words
        default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    )


def measure(documents: Documents, settings: GopherRepetition) -> Measurement:
    """Measure a batch."""
    return measure_each(documents, SCORES, lambda view: judge_one(view, settings))


def rules(settings: GopherRepetition) -> list[Rule]:
    """Return the thresholds."""
    return []


def judge_one(view: TextView, settings: GopherRepetition) -> Verdict:
    """Judge one document: lines, paragraphs, most frequent n-grams, duplicated n-grams."""
    verdict = Verdict(NAME)
    line_share, line_characters = duplicate_shares(view.lines)
    paragraph_share, paragraph_characters = duplicate_shares(view.paragraphs)
    if verdict.score("lines", line_share) > settings.max_lines:
        return verdict.drop("duplicate_lines")
    if verdict.score("paragraphs", paragraph_share) > settings.max_paragraphs:
        return verdict.drop("duplicate_paragraphs")
    if verdict.score("line_characters", line_characters) > settings.max_line_characters:
        return verdict.drop("duplicate_line_characters")
    if verdict.score("paragraph_characters", paragraph_characters) > settings.max_paragraph_characters:
        return verdict.drop("duplicate_paragraph_characters")
    if not view.spaced:
        verdict.abstain("top_ngrams")
        verdict.abstain("duplicated_ngrams")
        return verdict
    shares = [*settings.max_top_ngrams, *settings.max_duplicated_ngrams]
    limits = dict(zip(TOP_SIZES + DUPLICATED_SIZES, shares, strict=True))
    for n, places, ids in repeated_ngrams(view.words, largest=DUPLICATED_SIZES[-1]):
        if n in TOP_SIZES:
            name, share = f"top_{n}_gram", top_ngram_share(places, ids, n, view.word_lengths)
        else:
            name, share = f"duplicated_{n}_grams", duplicated_ngram_share(places, ids, n, view.word_lengths)
        if verdict.score(name, share) > limits[n]:
            return verdict.drop(name)
    return verdict


def duplicate_shares(pieces: list[str]) -> tuple[float, float]:
    """Return the share of `pieces` that occurred before, by number and by characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return (count / len(pieces), characters / sum(map(len, pieces))) if pieces else (0.0, 0.0)


def repeated_ngrams(words: list[str], largest: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield for n = 2 to `largest` the n-grams that occur at least twice.

    Yields:
        n; int64 [places], where they begin, ascending; int64 [places], equal numbers for equal n-grams, and a number
        larger than all before at the first occurrence.

    An n-gram is an (n-1)-gram and a word, so it can repeat only where its (n-1)-gram does; pairs are numbered exactly,
    without hash collisions.
    """
    word_ids = _number(pa.array(words, pa.large_string()))
    distinct = 1 + int(word_ids.max(initial=0))
    repeated = np.bincount(word_ids, minlength=1)[word_ids] > 1
    places, ids = np.flatnonzero(repeated), word_ids[repeated]
    for n in range(2, largest + 1):
        inside = places + n <= len(words)
        places, ids = places[inside], ids[inside]
        ids = _number(pa.array(ids * distinct + word_ids[places + n - 1]))
        repeated = np.bincount(ids, minlength=1)[ids] > 1
        places, ids = places[repeated], ids[repeated]
        yield n, places, ids


def _number(values: pa.Array) -> np.ndarray:
    """Return int64 [values]: 0, 1, 2, ... for distinct values, in the order of their first occurrence."""
    return values.dictionary_encode().indices.to_numpy().astype(np.int64)


def top_ngram_share(places: np.ndarray, ids: np.ndarray, n: int, word_lengths: np.ndarray) -> float:
    """Return occurrences times length of the most frequent n-gram over all characters of words; at most 1."""
    if not len(ids):
        return 0.0
    counts = np.bincount(ids)
    top = counts.max()
    ends = np.concatenate(([0], np.cumsum(word_lengths)))
    candidates = places[counts[ids] == top]
    longest = (ends[candidates + n] - ends[candidates]).max()
    return min(1.0, float(top * longest) / float(ends[-1]))


def duplicated_ngram_share(places: np.ndarray, ids: np.ndarray, n: int, word_lengths: np.ndarray) -> float:
    """Return the share of characters in words that lie in an n-gram which occurred before."""
    if not len(ids):
        return 0.0
    again = places[1:][ids[1:] <= np.maximum.accumulate(ids)[:-1]]
    covered = np.zeros(len(word_lengths), bool)
    for shift in range(n):
        covered[again + shift] = True
    return float(word_lengths[covered].sum()) / float(word_lengths.sum())
