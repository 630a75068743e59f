"""C4's rules (Raffel et al. 2020, arXiv:1910.10683, section 2.2): first line by line, then for the page.

Every rule has a switch. The numbers are the paper's; datatrove 0.10 has them the other way round
(`min_words_per_line: 3`, `min_sentences: 5`) and so keeps more lines and fewer pages. The rules on words abstain for
scripts without spaces, unless `unspaced: characters`. Phrases are found without regard to case.

C4 drops a page with any word of a list of bad words: give that list, or yours, as `flagged_word_lists`. Its
deduplication of three-sentence spans compares documents, so it is no part of this filter.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numba
import numpy as np

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.word_lists import count_listed
from data_pipeline.filters.words import WordRules
from data_pipeline.text import Segmenter, Spans, Texts, Unspaced
from data_pipeline.text.edits import join_lines, joined, strip_citations
from data_pipeline.text.patterns import Patterns, compile_patterns, count_between, find
from data_pipeline.text.spans import code_points, ends_with, ends_with_dots, total

NAME = "c4"
VERSION = 2

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
"""The paper names policy notices; these are the phrases of the TensorFlow Datasets implementation."""

_PHRASES = ("lorem ipsum", "javascript", *POLICIES)
LINE_REASONS = (
    "line_without_terminal_punctuation",
    "line_with_too_few_words",
    "line_with_too_long_word",
    "javascript_line",
    "policy_line",
)
"""What lines are removed for; the first that holds is counted."""


@dataclass
class C4(WordRules):
    """Which rules are on, and their numbers (section 2.2; the longest word is TensorFlow Datasets')."""

    terminal_punctuation: str = ".!?\"'"  # a line must end in one of these, and not in "..."; empty: rule off
    min_words_per_line: int = 5
    max_word_length: int = 1000  # characters; a line with a longer word is removed
    remove_javascript_lines: bool = True
    remove_policy_lines: bool = True
    strip_citations: bool = True  # [1], [edit], [citation needed]
    drop_lorem_ipsum: bool = True
    drop_curly_brackets: bool = True
    min_sentences: int = 3
    flagged_word_lists: dict[str, str] = field(default_factory=dict)  # language -> file, a word or phrase per line
    max_flagged_words: int = 0


def files(settings: C4) -> list[Path]:
    """Return the files whose content decides what is kept."""
    return [Path(file) for file in settings.flagged_word_lists.values()]


def rules(settings: C4) -> list[Rule]:
    """Return the thresholds."""
    switched = [
        (settings.drop_lorem_ipsum, Rule("lorem_ipsum", "lorem_ipsum", maximum=0)),
        (settings.drop_curly_brackets, Rule("curly_bracket", "curly_brackets", maximum=0)),
        (bool(settings.flagged_word_lists), Rule("flagged_words", "flagged_words", maximum=settings.max_flagged_words)),
        (True, Rule("too_few_sentences", "sentences", minimum=settings.min_sentences)),
        (True, Rule("no_lines_left", "lines", minimum=1)),
    ]
    return [rule for on, rule in switched if on]


def measure(documents: Documents, settings: C4) -> Measurement:
    """Measure a batch; the texts are edited where lines or citation marks go."""
    before = documents.texts
    _ = before.lines  # found now, so that only texts with citation marks are split again
    texts, stripped = strip_citations(before) if settings.strip_citations else (before, np.zeros(len(before), bool))
    lines = texts.lines.compact()
    positions, phrases = find(texts, _phrases())
    words = _words(before, texts, stripped, lines, settings)
    failed = np.stack(line_failures(texts, lines, positions, phrases, words, settings))
    removed = failed.any(0)
    edited, after = None, texts
    if removed.any() or stripped.any():
        edited = join_lines(texts, lines, ~removed)
        after = joined(texts, lines, ~removed, edited)
        if settings.words is Segmenter.whitespace and settings.unspaced is Unspaced.abstain:
            after.once("word_counts", lambda: total(np.where(removed, 0, words.count), lines.first, lines.last))
    lorem_ipsum = count_between(positions[phrases == 0], texts.begin, texts.end)
    scores = {
        "lorem_ipsum": lorem_ipsum,
        "curly_brackets": before.census("curly_brackets"),
        "sentences": after.sentences,
        "lines": total(~removed, lines.first, lines.last),
    }
    if settings.flagged_word_lists:
        scores["flagged_words"] = count_listed(documents, settings.flagged_word_lists)
    reasons = np.bincount(failed.argmax(0)[removed], minlength=len(LINE_REASONS)).tolist()
    return Measurement(
        {name: values.astype(np.float64) for name, values in scores.items()},
        edited,
        known=None if edited is None else after,
        counts=dict(zip(LINE_REASONS, reasons, strict=True)),
    )


@dataclass(frozen=True)
class LineWords:
    """What the rules on lines ask of their words."""

    count: np.ndarray  # int64 [lines]
    longest: np.ndarray  # int64 [lines], characters
    applies: np.ndarray  # bool [documents], whether rules on words have a say


def _words(before: Texts, texts: Texts, stripped: np.ndarray, lines: Spans, settings: C4) -> LineWords:
    """Count the words of `lines`, those of `texts`; what is `stripped` differs in `before` and is split into words."""
    words, applies = settings.spans(before), settings.applies(before)
    count, longest = words_of_lines(words.starts, words.characters, words.first, words.last, *_line_columns(lines))
    if stripped.any():
        own, chosen = texts.select(stripped), np.repeat(stripped, lines.counts)
        words, applies[stripped] = settings.spans(own), settings.applies(own)
        columns = _line_columns(own.lines.compact())
        found = words_of_lines(words.starts, words.characters, words.first, words.last, *columns)
        count[chosen], longest[chosen] = found
    return LineWords(count, longest, applies)


def line_failures(
    texts: Texts, lines: Spans, positions: np.ndarray, phrases: np.ndarray, words: LineWords, settings: C4
) -> list[np.ndarray]:
    """Return bool [lines] for each of LINE_REASONS."""
    ranges = texts.data, lines.starts, lines.ends
    never = np.zeros(len(lines.starts), bool)
    marks = settings.terminal_punctuation
    unpunctuated = ~ends_with(*ranges, code_points(marks)) | ends_with_dots(*ranges) if marks else never
    applies = np.repeat(words.applies, lines.counts)
    javascript = count_between(positions[phrases == 1], lines.starts, lines.ends) > 0
    policy = count_between(positions[phrases > 1], lines.starts, lines.ends) > 0
    return [
        unpunctuated,
        applies & (words.count < settings.min_words_per_line),
        applies & (words.longest > settings.max_word_length),
        javascript if settings.remove_javascript_lines else never,
        policy if settings.remove_policy_lines else never,
    ]


def _line_columns(lines: Spans) -> tuple[np.ndarray, ...]:
    return lines.starts, lines.ends, lines.first, lines.last


@numba.njit(cache=True, nogil=True)
def words_of_lines(
    word_starts: np.ndarray,
    word_characters: np.ndarray,
    first_word: np.ndarray,
    last_word: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [lines]: how many words begin in each line, and the characters of the longest one."""
    count, longest = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    for document in range(len(first)):
        word, behind = first_word[document], last_word[document]
        for line in range(first[document], last[document]):
            while word < behind and word_starts[word] < starts[line]:
                word += 1
            while word < behind and word_starts[word] < ends[line]:
                count[line] += 1
                longest[line] = max(longest[line], word_characters[word])
                word += 1
    return count, longest


@cache
def _phrases() -> Patterns:
    return compile_patterns(list(_PHRASES))
