"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6).

The share of characters in duplicated lines is the paper's 0.1 (its code ships 0.01). The limit on newlines per word
stands in the code only. Lines are those that are not blank. The marks that end a line include those of scripts other
than Latin. The newline rule counts words and abstains for scripts without spaces.
"""

from dataclasses import dataclass

from data_pipeline.document import Documents, TextView
from data_pipeline.filters.gopher_repetition import duplicate_shares
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.verdict import Verdict, measure_each

NAME = "fineweb"
VERSION = 1

TERMINAL_MARKS = tuple(
    ".!?\"'\u201d\u2019\u2026"  # Latin, with closing quotes and the ellipsis
    "\u3002\uff01\uff1f\u300d\u300f"  # Chinese and Japanese
    "\u0964\u0965\u06d4\u061f\u1362"  # Devanagari, Urdu, Arabic, Ethiopic
)
SCORES = [f"{NAME}.{name}" for name in ("punctuated_lines", "short_lines", "duplicate_characters", "newlines")]


@dataclass
class FineWeb:
    """Thresholds; a document on a threshold is kept."""

    min_punctuated_lines: float = 0.12  # share of lines that end in a mark of TERMINAL_MARKS
    short_line_length: int = 30  # characters; a line of this length is short
    max_short_lines: float = 0.67  # share of lines
    max_duplicate_characters: float = 0.1  # share of characters in lines that occurred before
    max_newlines: float = 0.3  # newlines per word


def measure(documents: Documents, settings: FineWeb) -> Measurement:
    """Measure a batch."""
    return measure_each(documents, SCORES, lambda view: judge_one(view, settings))


def rules(settings: FineWeb) -> list[Rule]:
    """Return the thresholds."""
    return []


def judge_one(view: TextView, settings: FineWeb) -> Verdict:
    """Judge one document."""
    verdict = Verdict(NAME)
    count = len(view.lines)
    if count == 0:
        return verdict.drop("empty")
    punctuated = sum(1 for line in view.lines if line.endswith(TERMINAL_MARKS))
    if verdict.score("punctuated_lines", punctuated / count) < settings.min_punctuated_lines:
        return verdict.drop("too_few_punctuated_lines")
    short = sum(1 for line in view.lines if len(line) <= settings.short_line_length)
    if verdict.score("short_lines", short / count) > settings.max_short_lines:
        return verdict.drop("too_many_short_lines")
    if verdict.score("duplicate_characters", duplicate_shares(view.lines)[1]) > settings.max_duplicate_characters:
        return verdict.drop("duplicate_lines")
    if not view.spaced:
        verdict.abstain("newlines")
    elif verdict.score("newlines", view.text.count("\n") / len(view.words)) > settings.max_newlines:
        return verdict.drop("too_many_newlines")
    return verdict
