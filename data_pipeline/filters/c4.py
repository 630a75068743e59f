"""C4's rules (Raffel et al. 2020, arXiv:1910.10683, section 2.2): first line by line, then for the page.

Not here: C4's list of bad words (a page with one is dropped) and its three-sentence deduplication.
Every rule has a switch. The rules on words abstain for scripts without spaces.
"""

import re
from dataclasses import dataclass

from data_pipeline.document import Documents, TextView
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.verdict import Verdict, measure_each

NAME = "c4"
VERSION = 1

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
"""The paper names policy notices; these are the phrases of the TensorFlow Datasets implementation."""

_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
_SENTENCE_END = re.compile(
    "[.!?]+[\"'\u201d\u2019)\\]]*(?=\\s|$)"  # with closing quotes and brackets
    "|[\u3002\uff01\uff1f]+"  # full-width: no space follows
)
SCORES = [f"{NAME}.sentences"]


@dataclass
class C4:
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


def measure(documents: Documents, settings: C4) -> Measurement:
    """Measure a batch."""
    return measure_each(documents, SCORES, lambda view: judge_one(view, settings))


def rules(settings: C4) -> list[Rule]:
    """Return the thresholds."""
    return []


def judge_one(view: TextView, settings: C4) -> Verdict:
    """Judge one document; the text is edited when a line or a citation mark goes."""
    verdict = Verdict(NAME)
    if settings.drop_lorem_ipsum and "lorem ipsum" in view.text.lower():
        return verdict.drop("lorem_ipsum")
    if settings.drop_curly_brackets and "{" in view.text:
        return verdict.drop("curly_bracket")
    if not view.spaced:
        verdict.abstain("words_per_line")
        verdict.abstain("word_length")
    text = _CITATION.sub("", view.text) if settings.strip_citations else view.text
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    kept = []
    for line in lines:
        reason = line_reason(line, view.spaced, settings)
        if reason:
            verdict.remove_line(reason)
        else:
            kept.append(line)
    if len(kept) < len(lines):
        text = "\n".join(kept)
    sentences = len(_SENTENCE_END.findall(text))
    if verdict.score("sentences", sentences) < settings.min_sentences:
        return verdict.drop("too_few_sentences")
    if not kept:
        return verdict.drop("no_lines_left")
    if text != view.text:
        verdict.text = text
    return verdict


def line_reason(line: str, spaced: bool, settings: C4) -> str | None:
    """Return why a line is removed, or None."""
    marks = settings.terminal_punctuation
    if marks and (not line.endswith(tuple(marks)) or line.endswith("...")):
        return "line_without_terminal_punctuation"
    if spaced:
        words = line.split()
        if len(words) < settings.min_words_per_line:
            return "line_with_too_few_words"
        if max(map(len, words)) > settings.max_word_length:
            return "line_with_too_long_word"
    lowered = line.lower()
    if settings.remove_javascript_lines and "javascript" in lowered:
        return "javascript_line"
    if settings.remove_policy_lines and any(policy in lowered for policy in POLICIES):
        return "policy_line"
    return None
