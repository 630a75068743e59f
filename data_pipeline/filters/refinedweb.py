"""RefinedWeb's line-wise corrections (Penedo et al. 2023, arXiv:2306.01116, appendix G.2).

A line is removed that is mainly of capitals, only of digits, a counter such as "3 likes", or a single word. A short
line loses "items in cart", "Read more..." at its end and "Sign-in" at its beginning. A document of which these changes
touch more than a twentieth of the words is dropped. Not re-read in the paper; the readings are DCLM's published recipe
(mlfoundations/dclm, dclm_baseline_refinedweb.yaml) with these choices: shares of capitals are over all characters of
the line; the words of removed lines and of removed phrases count as touched.

The rules are for English: documents of other languages, or of unknown language, are not edited and abstain.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache

import numba
import numpy as np

from data_pipeline.document import Documents
from data_pipeline.filters.c4 import words_of_lines
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.words import WordRules, share, where
from data_pipeline.text import Spans, Texts
from data_pipeline.text.characters import DIGIT, SPACE, UPPER, decode, properties, width
from data_pipeline.text.edits import join_lines
from data_pipeline.text.patterns import Patterns, compile_patterns, count_between, find
from data_pipeline.text.spans import total

NAME = "refinedweb"
VERSION = 1

LINE_REASONS = ("uppercase_line", "numeric_line", "counter_line", "one_word_line")
"""What lines are removed for; the first that holds is counted."""

COUNTED = ("like", "share", "comment", "retweet", "repost", "quote", "bookmark", "upvote", "downvote", "download")
COUNTED += ("view", "follower")
_COUNTER = re.compile(rf"\W*\d[\d.,]*[kmb]?\s*(?:{'|'.join(COUNTED)})s?\W*", re.IGNORECASE)
_PHRASES = ("sign-in", "read more...", "items in cart")
_EDITS = (
    (re.compile(r"^sign-in\s*", re.IGNORECASE), ""),
    (re.compile(r"\s*read more\.\.\.$", re.IGNORECASE), ""),
    (re.compile(r"\s*items in cart", re.IGNORECASE), ""),
)


@dataclass
class RefinedWeb(WordRules):
    """Thresholds of appendix G.2."""

    languages: list[str] = field(default_factory=lambda: ["en"])
    max_uppercase: float = 0.5  # share of characters; a line above it is removed
    min_words_per_line: int = 2
    short_line_words: int = 10  # a line of at most so many words loses the phrases
    max_removed_words: float = 0.05  # share of the document's words


def rules(settings: RefinedWeb) -> list[Rule]:
    """Return the thresholds."""
    return [
        Rule("too_many_removed_words", "removed_words", maximum=settings.max_removed_words),
        Rule("no_lines_left", "lines", minimum=1),
    ]


def measure(documents: Documents, settings: RefinedWeb) -> Measurement:
    """Measure a batch; the texts are edited line by line."""
    texts = documents.texts
    words, lines = settings.spans(texts), texts.lines.compact()
    applies = documents.in_languages(settings.languages) & settings.applies(texts)
    asked = np.repeat(applies, lines.counts)
    columns = lines.starts, lines.ends, lines.first, lines.last
    counts = words_of_lines(words.starts, words.characters, words.first, words.last, *columns)[0]
    uppercase, numeric, with_digit = line_characters(
        texts.data, lines.starts, lines.ends, lines.characters, properties()
    )
    counters = _counters(texts, lines, asked & with_digit & (counts <= 4) & (lines.characters <= 40))
    failed = np.stack([uppercase > settings.max_uppercase, numeric, counters, counts < settings.min_words_per_line])
    failed &= asked
    removed = failed.any(0)
    changed, moved, lost = _shorten(texts, lines, asked & ~removed & (counts <= settings.short_line_words))
    keep = ~removed & (moved.ends > moved.starts)
    touched = total(np.where(removed, counts, lost), lines.first, lines.last)
    edited = None
    if removed.any() or lost.any():
        edited = join_lines(changed, moved, keep, lost > 0)
    reasons = dict(zip(LINE_REASONS, np.bincount(failed.argmax(0)[removed], minlength=4).tolist(), strict=True))
    scores = {
        "removed_words": where(applies, share(touched, words.counts)),
        "lines": where(applies, total(keep, lines.first, lines.last)),
    }
    return Measurement(scores, edited, counts=reasons | {"shortened_line": int((lost > 0).sum())})


def _counters(texts: Texts, lines: Spans, candidates: np.ndarray) -> np.ndarray:
    """Return bool [lines], which of the candidates are a counter."""
    found = np.zeros(len(lines.starts), bool)
    for line in np.flatnonzero(candidates).tolist():
        text = bytes(texts.data[lines.starts[line] : lines.ends[line]]).decode()
        found[line] = _COUNTER.fullmatch(text) is not None
    return found


def _shorten(texts: Texts, lines: Spans, short: np.ndarray) -> tuple[Texts, Spans, np.ndarray]:
    """Take the phrases out of short lines.

    Returns:
        texts with the new lines behind their bytes; the lines in there; int64 [lines], words that went.
    """
    positions, _ = find(texts, _phrases())
    starts, ends, lost = lines.starts.copy(), lines.ends.copy(), np.zeros(len(lines.starts), np.int64)
    added, size = [texts.data], len(texts.data)
    for line in np.flatnonzero(short & (count_between(positions, lines.starts, lines.ends) > 0)).tolist():
        before = bytes(texts.data[starts[line] : ends[line]]).decode()
        after = before
        for pattern, replacement in _EDITS:
            after = pattern.sub(replacement, after)
        after = after.strip()
        if after != before:
            lost[line] = len(before.split()) - len(after.split())
            added.append(np.frombuffer(after.encode(), np.uint8))
            starts[line], ends[line] = size, size + len(added[-1])
            size += len(added[-1])
    moved = replace(lines, starts=starts, ends=ends)
    return Texts(np.concatenate(added), texts.begin, texts.end), moved, lost


@numba.njit(cache=True, nogil=True)
def line_characters(
    data: np.ndarray, starts: np.ndarray, ends: np.ndarray, characters: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float64 [lines], the share of capitals; bool [lines]: only digits and white space; any digit."""
    uppercase, numeric = np.zeros(len(starts)), np.ones(len(starts), np.bool_)
    with_digit = np.zeros(len(starts), np.bool_)
    for line in range(len(starts)):
        capitals, at = 0, starts[line]
        while at < ends[line]:
            bits = table[decode(data, at)]
            capitals += (bits & UPPER) != 0
            with_digit[line] |= (bits & DIGIT) != 0
            numeric[line] &= (bits & (DIGIT | SPACE)) != 0
            at += width(data[at])
        uppercase[line] = capitals / characters[line]
    return uppercase, numeric, with_digit


@cache
def _phrases() -> Patterns:
    return compile_patterns(list(_PHRASES))
