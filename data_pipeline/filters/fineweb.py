"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6).

The share of characters in duplicated lines is the paper's 0.1 (its code ships 0.01). The limit on newlines per word
stands in the code only. Lines are those that are not blank, without the white space around them. The marks that end a
line include those of scripts other than Latin. The newline rule counts words and abstains for scripts without spaces,
unless `unspaced: characters`.

`definition: datatrove` (0.10) takes the characters of duplicated lines over all characters but newlines; the paper
leaves it open, ours is over the characters of lines. It does not strip lines, and knows more marks.
"""

from dataclasses import dataclass

from data_pipeline.document import Documents
from data_pipeline.filters.gopher_repetition import duplicates
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.words import Definition, WordRules, share, where
from data_pipeline.text.spans import code_points, ends_with, total

NAME = "fineweb"
VERSION = 2

TERMINAL_MARKS = (
    ".!?\"'\u201d\u2019\u2026"  # Latin, with closing quotes and the ellipsis
    "\u3002\uff01\uff1f\u300d\u300f"  # Chinese and Japanese
    "\u0964\u0965\u06d4\u061f\u1362"  # Devanagari, Urdu, Arabic, Ethiopic
)


@dataclass
class FineWeb(WordRules):
    """Thresholds; a document on a threshold is kept."""

    definition: Definition = Definition.paper
    min_punctuated_lines: float = 0.12  # share of lines that end in a mark of TERMINAL_MARKS
    short_line_length: int = 30  # characters; a line of this length is short
    max_short_lines: float = 0.67  # share of lines
    max_duplicate_characters: float = 0.1  # share of characters in lines that occurred before
    max_newlines: float = 0.3  # newlines per word


def rules(settings: FineWeb) -> list[Rule]:
    """Return the thresholds."""
    return [
        Rule("too_few_punctuated_lines", "punctuated_lines", minimum=settings.min_punctuated_lines),
        Rule("too_many_short_lines", "short_lines", maximum=settings.max_short_lines),
        Rule("duplicate_lines", "duplicate_characters", maximum=settings.max_duplicate_characters),
        Rule("too_many_newlines", "newlines", maximum=settings.max_newlines),
    ]


def measure(documents: Documents, settings: FineWeb) -> Measurement:
    """Measure a batch; a document without lines is dropped as empty."""
    texts = documents.texts
    lines = texts.lines
    punctuated = ends_with(texts.data, lines.starts, lines.ends, code_points(TERMINAL_MARKS))
    short = lines.characters <= settings.short_line_length
    if settings.definition is Definition.datatrove:
        whole = texts.census("characters") - texts.census("newlines")
    else:
        whole = total(lines.characters, lines.first, lines.last)
    newlines = share(texts.census("newlines"), texts.word_counts(settings.words, settings.unspaced))
    return Measurement(
        {
            "punctuated_lines": share(total(punctuated, lines.first, lines.last), lines.counts),
            "short_lines": share(total(short, lines.first, lines.last), lines.counts),
            "duplicate_characters": share(duplicates(texts, lines, with_first=False)[1], whole),
            "newlines": where(settings.applies(texts), newlines),
        },
        drops={"empty": lines.counts == 0},
    )
