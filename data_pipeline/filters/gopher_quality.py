"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1, "Quality filtering").

Rules that count words abstain for scripts without spaces, unless `unspaced: characters`. The stop-word rule abstains
for documents that are not known to be in one of its languages. An empty document has no means and no shares.

`definition` says what is counted where the implementations differ:

              paper (default)           datatrove 0.10                   dolma gopher_v1
words         all                       those with a letter, digit or _  all
length        mean                      mean of those words              median
symbols       "#" and, apart from it,   as paper                         words that hold "#" or "…", in one number
              ellipses, in the text
lines         not blank, stripped       as paper                         all, as they are
bullets       BULLETS                   "•", "-"                         "*", "-"
ellipsis      "..." and "…"             as paper                         "…"
stop words    different ones, any case  different ones, as written       occurrences, as written

The shares of datatrove are over all words. It takes spaCy's words, to which `words: uax29` is nearest, counts blank
lines, and knows punctuation from a list of its own.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.words import Definition, WordRules, share, where
from data_pipeline.text import Spans, Texts
from data_pipeline.text.matching import occurrences_of_words, words_with_symbols
from data_pipeline.text.spans import code_points, ends_with, ends_with_dots, median, starts_with, total
from data_pipeline.text.words import HAS_LETTER, HAS_WORD_CHARACTER

NAME = "gopher_quality"
VERSION = 2

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = {Definition.paper: "•‣●◦▪-*", Definition.datatrove: "•-", Definition.dolma: "*-"}
"""The paper says "a bullet point" without naming characters: ours are assumed."""


@dataclass
class GopherQuality(WordRules):
    """Thresholds, the paper's unless a preset says otherwise; a document on a threshold is kept."""

    definition: Definition = Definition.paper
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0  # characters, mean or median
    max_word_length: float = 10.0  # characters, mean or median
    max_symbol_ratio: float = 0.1  # "#" per word, and ellipses per word
    max_bullet_lines: float = 0.9  # share of lines that start with a bullet
    max_ellipsis_lines: float = 0.3  # share of lines that end with an ellipsis
    min_alphabetic_words: float = 0.8  # share of words with at least one letter
    min_stop_words: int = 2  # of STOP_WORDS; 0: rule off
    stop_word_languages: list[str] = field(default_factory=lambda: ["en"])


def rules(settings: GopherQuality) -> list[Rule]:
    """Return the thresholds, in the order of the paper's sentence."""
    return [
        Rule("too_few_words", "words", minimum=settings.min_words),
        Rule("too_many_words", "words", maximum=settings.max_words),
        Rule("words_too_short", "word_length", minimum=settings.min_word_length),
        Rule("words_too_long", "word_length", maximum=settings.max_word_length),
        Rule("too_many_hashes", "hash_ratio", maximum=settings.max_symbol_ratio),
        Rule("too_many_ellipses", "ellipsis_ratio", maximum=settings.max_symbol_ratio),
        Rule("too_many_bullet_lines", "bullet_lines", maximum=settings.max_bullet_lines),
        Rule("too_many_ellipsis_lines", "ellipsis_lines", maximum=settings.max_ellipsis_lines),
        Rule("too_few_alphabetic_words", "alphabetic_words", minimum=settings.min_alphabetic_words),
        *([Rule("too_few_stop_words", "stop_words", minimum=settings.min_stop_words)] * (settings.min_stop_words > 0)),
    ]


def measure(documents: Documents, settings: GopherQuality) -> Measurement:
    """Measure a batch."""
    texts, definition = documents.texts, settings.definition
    words = settings.spans(texts)
    counted, length = _lengths(words, definition)
    hashes, ellipses = _symbols(texts, words, definition)
    alphabetic = total(words.flags & HAS_LETTER, words.first, words.last)
    scores = {
        "words": counted.astype(np.float64),
        "word_length": length,
        "hash_ratio": share(hashes, words.counts),
        "ellipsis_ratio": share(ellipses, words.counts),
        "alphabetic_words": share(alphabetic, words.counts),
    }
    applies = settings.applies(texts)
    scores = {name: where(applies, values) for name, values in scores.items()}
    asks_stop_words = applies & documents.in_languages(settings.stop_word_languages)
    scores["stop_words"] = where(asks_stop_words, _stop_words(texts, words, definition))
    return Measurement(scores | _line_scores(texts, definition))


def _lengths(words: Spans, definition: Definition) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of words, int64 [documents], and their length."""
    if definition is Definition.dolma:
        return words.counts, median(words.characters, words.first, words.last)
    if definition is Definition.datatrove:
        with_characters = words.flags & HAS_WORD_CHARACTER != 0
        counted = total(with_characters, words.first, words.last)
        return counted, share(total(words.characters * with_characters, words.first, words.last), counted)
    return words.counts, share(total(words.characters, words.first, words.last), words.counts)


def _symbols(texts: Texts, words: Spans, definition: Definition) -> tuple[np.ndarray, np.ndarray]:
    if definition is Definition.dolma:
        together = words_with_symbols(texts.data, words.starts, words.ends, words.first, words.last)
        return together, together
    return texts.census("hashes"), texts.census("ellipses")


def _stop_words(texts: Texts, words: Spans, definition: Definition) -> np.ndarray:
    found = occurrences_of_words(texts, words, STOP_WORDS, any_case=definition is Definition.paper)
    return found.sum(0) if definition is Definition.dolma else (found > 0).sum(0)


def _line_scores(texts: Texts, definition: Definition) -> dict[str, np.ndarray]:
    lines = texts.raw_lines if definition is Definition.dolma else texts.lines
    ranges = texts.data, lines.starts, lines.ends
    ellipses = ends_with(*ranges, code_points("…"))
    if definition is not Definition.dolma:
        ellipses |= ends_with_dots(*ranges)
    bullets = starts_with(*ranges, code_points(BULLETS[definition]))
    return {
        "bullet_lines": share(total(bullets, lines.first, lines.last), lines.counts),
        "ellipsis_lines": share(total(ellipses, lines.first, lines.last), lines.counts),
    }
