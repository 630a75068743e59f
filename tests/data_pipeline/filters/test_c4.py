import pytest

from data_pipeline.document import TextView
from data_pipeline.filters.c4 import C4, judge_one

GOOD = "This is a sentence of seven words."


def judged(text, **settings):
    return judge_one(TextView(text, "en"), C4(**{"min_sentences": 1, **settings}))


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
        assert not verdict.removed_lines
    else:
        assert verdict.text == f"{GOOD}\n{GOOD}"
        assert verdict.removed_lines == {f"c4.{reason}": 1}


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
    assert judged(text, **settings).reason == (reason and f"c4.{reason}")


def test_every_rule_can_be_switched_off():
    text = "{ lorem ipsum } javascript [1]"
    off = C4("", 0, 10**9, False, False, False, False, False, 0)
    verdict = judge_one(TextView(text, "en"), off)
    assert (verdict.reason, verdict.text) == (None, None)


def test_citation_marks_are_stripped():
    text = "The moon is round[1] and bright.[citation needed] Said he.[edit] [sic] stays here."
    assert judged(text).text == "The moon is round and bright. Said he. [sic] stays here."
