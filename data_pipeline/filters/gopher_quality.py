"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1, "Quality filtering").

A word is what stands between white space, punctuation included. Rules that count words abstain for scripts without
spaces; the stop-word rule abstains for documents that are not known to be in one of its languages.
"""

import re
from dataclasses import dataclass, field

from data_pipeline.document import Documents, TextView
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.verdict import Verdict, measure_each

NAME = "gopher_quality"
VERSION = 1

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "●", "◦", "▪", "-", "*")
"""The paper says "a bullet point" without naming characters: assumed."""

_ALPHABETIC = re.compile(r"[^\W\d_]")
_WORD_RULES = ("words", "mean_word_length", "symbol_ratio", "alphabetic_words", "stop_words")
SCORES = [
    f"{NAME}.{name}"
    for name in (
        "words",
        "mean_word_length",
        "hash_ratio",
        "ellipsis_ratio",
        "bullet_lines",
        "ellipsis_lines",
        "alphabetic_words",
        "stop_words",
    )
]


@dataclass
class GopherQuality:
    """Thresholds, the paper's unless a preset says otherwise; a document on a threshold is kept."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0  # characters
    max_mean_word_length: float = 10.0  # characters
    max_symbol_ratio: float = 0.1  # "#" per word, and ellipses per word
    max_bullet_lines: float = 0.9  # share of lines that start with a bullet
    max_ellipsis_lines: float = 0.3  # share of lines that end with an ellipsis
    min_alphabetic_words: float = 0.8  # share of words with at least one letter
    min_stop_words: int = 2  # different words of STOP_WORDS; 0: rule off
    stop_word_languages: list[str] = field(default_factory=lambda: ["en"])


def measure(documents: Documents, settings: GopherQuality) -> Measurement:
    """Measure a batch."""
    return measure_each(documents, SCORES, lambda view: judge_one(view, settings))


def rules(settings: GopherQuality) -> list[Rule]:
    """Return the thresholds."""
    return []


def judge_one(view: TextView, settings: GopherQuality) -> Verdict:
    """Judge one document; the rules run in the order of the paper's sentence."""
    verdict = Verdict(NAME)
    if view.spaced:
        _word_rules(view, settings, verdict)
    else:
        for rule in _WORD_RULES:
            verdict.abstain(rule)
    if verdict.reason is None and view.lines:
        _line_rules(view, settings, verdict)
    return verdict


def _word_rules(view: TextView, settings: GopherQuality, verdict: Verdict) -> Verdict:
    words = view.words
    count = verdict.score("words", len(words))
    if count < settings.min_words:
        return verdict.drop("too_few_words")
    if count > settings.max_words:
        return verdict.drop("too_many_words")
    if not count:
        return verdict
    mean_length = verdict.score("mean_word_length", float(view.word_lengths.sum()) / count)
    if mean_length < settings.min_mean_word_length:
        return verdict.drop("words_too_short")
    if mean_length > settings.max_mean_word_length:
        return verdict.drop("words_too_long")
    if verdict.score("hash_ratio", view.text.count("#") / count) > settings.max_symbol_ratio:
        return verdict.drop("too_many_hashes")
    ellipses = view.text.count("...") + view.text.count("…")
    if verdict.score("ellipsis_ratio", ellipses / count) > settings.max_symbol_ratio:
        return verdict.drop("too_many_ellipses")
    alphabetic = sum(1 for word in words if _ALPHABETIC.search(word))
    if verdict.score("alphabetic_words", alphabetic / count) < settings.min_alphabetic_words:
        return verdict.drop("too_few_alphabetic_words")
    if settings.min_stop_words == 0:
        return verdict
    if view.primary_language not in settings.stop_word_languages:
        verdict.abstain("stop_words")
        return verdict
    stop_words = STOP_WORDS.intersection(word.lower() for word in words)
    if verdict.score("stop_words", len(stop_words)) < settings.min_stop_words:
        return verdict.drop("too_few_stop_words")
    return verdict


def _line_rules(view: TextView, settings: GopherQuality, verdict: Verdict) -> Verdict:
    count = len(view.lines)
    bullets = sum(1 for line in view.lines if line.startswith(BULLETS))
    if verdict.score("bullet_lines", bullets / count) > settings.max_bullet_lines:
        return verdict.drop("too_many_bullet_lines")
    ellipses = sum(1 for line in view.lines if line.endswith(("...", "…")))
    if verdict.score("ellipsis_lines", ellipses / count) > settings.max_ellipsis_lines:
        return verdict.drop("too_many_ellipsis_lines")
    return verdict
