import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_pipeline.filters import c4
from data_pipeline.filters.c4 import C4
from data_pipeline.text.characters import lowered
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.filters.judging import judge
from tests.data_pipeline.text import definitions

GOOD = "This is a sentence of seven words."


def judged(text, **settings):
    return judge(c4, C4(**{"min_sentences": 1, **settings}), text)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("A line without a mark at all", "line_without_terminal_punctuation"),
        ("A line that just trails off...", "line_without_terminal_punctuation"),
        ('He asked whether it "was so."', None),
        ("Only four words here.", "line_with_too_few_words"),
        ("Now there are five words.", None),
        ("One two three four " + "x" * 1001 + ".", "line_with_too_long_word"),
        ("Please enable JavaScript in your browser.", "javascript_line"),
        ("Read our Privacy Policy to learn more.", "policy_line"),
    ],
)
def test_a_line_goes_for_the_reason_of_its_rule(line, reason):
    verdict = judged(f"{GOOD}\n{line}\n{GOOD}")
    if reason is None:
        assert verdict.text is None
        assert not verdict.counts
    else:
        assert verdict.text == f"{GOOD}\n{GOOD}"
        assert verdict.counts == {reason: 1}


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        (f"{GOOD}\nLorem Ipsum dolor sit amet.", {}, "lorem_ipsum"),
        ("function() { return 1; }", {}, "curly_bracket"),
        (f"{GOOD} {GOOD}", {"min_sentences": 3}, "too_few_sentences"),
        (f"{GOOD} {GOOD}\n{GOOD}", {"min_sentences": 3}, None),
        ("no mark", {"min_sentences": 0}, "no_lines_left"),
    ],
)
def test_a_page_goes_for_the_reason_of_its_rule(text, settings, reason):
    assert judged(text, **settings).reason == reason


def test_every_rule_can_be_switched_off():
    text = "{ lorem ipsum } javascript [1]"
    off = C4(
        terminal_punctuation="",
        min_words_per_line=0,
        max_word_length=10**9,
        remove_javascript_lines=False,
        remove_policy_lines=False,
        strip_citations=False,
        drop_lorem_ipsum=False,
        drop_curly_brackets=False,
        min_sentences=0,
    )
    verdict = judge(c4, off, text)
    assert (verdict.reason, verdict.text) == (None, None)


def test_citation_marks_are_stripped():
    text = "The moon is round[1] and bright.[citation needed] Said he.[edit] [sic] stays here."
    assert judged(text).text == "The moon is round and bright. Said he. [sic] stays here."


def test_a_page_with_a_word_of_the_list_goes_in_the_language_of_the_list(tmp_path):
    listed = tmp_path / "en.txt"
    listed.write_text("# comment\nbad word\nugly\n")
    settings = C4(min_sentences=1, flagged_word_lists={"en": str(listed)})
    assert judge(c4, settings, "This has a Bad Word in it.").reason == "flagged_words"
    assert judge(c4, settings, "This has a bad wording in it.").reason is None
    assert judge(c4, settings, "This has a bad word in it.", "de").reason is None
    assert judge(c4, settings, "So UGLY! Truly ugly, is it not?").scores["flagged_words"] == 2


def reference(text, settings):
    """C4 in plain Python: the edited text, lines removed, sentences."""
    text = re.sub(r"\[(?:\d+|edit|citation needed)\]", "", text)
    lines = definitions.lines(text)
    spaced = definitions.is_spaced(text)
    kept = []
    for line in lines:
        words, lower = line.split(), lowered(line)
        if settings.terminal_punctuation and not line.endswith(tuple(settings.terminal_punctuation)):
            continue
        if settings.terminal_punctuation and line.endswith("..."):
            continue
        if spaced and (len(words) < settings.min_words_per_line or max(map(len, words)) > settings.max_word_length):
            continue
        if any(phrase in lower for phrase in ("javascript", *c4.POLICIES)):
            continue
        kept.append(line)
    if len(kept) < len(lines):
        text = "\n".join(kept)
    return text, len(lines) - len(kept), len(definitions.SENTENCE_END.findall(text)), "lorem ipsum" in lowered(text)


@given(rows=st.lists(definitions.texts, min_size=1, max_size=4), marks=st.sampled_from(["", ".!?", "。b"]))
@hypothesis_settings(deadline=None, max_examples=200)
def test_edits_and_scores_are_those_of_the_plain_definition(rows, marks):
    settings = C4(terminal_punctuation=marks, min_words_per_line=2, max_word_length=30)
    documents = make_documents([{"text": text} for text in rows])
    found = c4.measure(documents, settings)
    edited = rows if found.texts is None else found.texts.to_pylist()
    plain = [reference(text, settings) for text in rows]
    assert edited == [each[0] for each in plain]
    assert sum(found.counts.values()) == sum(each[1] for each in plain)
    assert found.scores["sentences"].tolist() == [each[2] for each in plain]
    before = [re.sub(r"\[(?:\d+|edit|citation needed)\]", "", text) for text in rows]
    np.testing.assert_array_equal(found.scores["lorem_ipsum"] > 0, ["lorem ipsum" in lowered(text) for text in before])
