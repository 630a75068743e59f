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

from data_pipeline.document import Documents, TextView
from data_pipeline.filters.verdict import Judgement, Verdict, judge_each

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


def judge(documents: Documents, settings: GopherRepetition) -> Judgement:
    """Judge a batch."""
    return judge_each(documents, SCORES, lambda view: judge_one(view, settings))


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
    for n, ids in ngram_ids(view.words, sizes=range(2, DUPLICATED_SIZES[-1] + 1)):
        if n in TOP_SIZES:
            name, share = f"top_{n}_gram", top_ngram_share(ids, n, view.word_lengths)
        else:
            name, share = f"duplicated_{n}_grams", duplicated_ngram_share(ids, n, view.word_lengths)
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


def ngram_ids(words: list[str], sizes: range) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (n, int64 [words - n + 1]): equal numbers at two places mean the same n words there, exactly.

    An n-gram is an (n-1)-gram and a word; numbering the distinct pairs anew at every n keeps the numbers small.
    """
    numbers: dict[str, int] = {}
    word_ids = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words))
    ids = word_ids
    for n in range(2, sizes.stop):
        pairs = ids[:-1] * max(len(numbers), 1) + word_ids[n - 1 :]
        ids = np.unique(pairs, return_inverse=True)[1].reshape(-1)
        if n in sizes:
            yield n, ids


def top_ngram_share(ids: np.ndarray, n: int, word_lengths: np.ndarray) -> float:
    """Return occurrences times length of the most frequent n-gram over all characters of words; at most 1."""
    if not len(ids):
        return 0.0
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    top = counts.max()
    if top < 2:
        return 0.0
    ends = np.concatenate(([0], np.cumsum(word_lengths)))
    places = first[counts == top]
    longest = (ends[places + n] - ends[places]).max()
    return min(1.0, float(top * longest) / float(ends[-1]))


def duplicated_ngram_share(ids: np.ndarray, n: int, word_lengths: np.ndarray) -> float:
    """Return the share of characters in words that lie in an n-gram which occurred before."""
    if not len(ids):
        return 0.0
    duplicate = np.ones(len(ids), bool)
    duplicate[np.unique(ids, return_index=True)[1]] = False
    if not duplicate.any():
        return 0.0
    covered = np.zeros(len(word_lengths), bool)
    for shift in range(n):
        covered[shift : shift + len(ids)] |= duplicate
    return float(word_lengths[covered].sum()) / float(word_lengths.sum())
