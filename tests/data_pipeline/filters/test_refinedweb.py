import pytest

from data_pipeline.filters import refinedweb
from data_pipeline.filters.refinedweb import RefinedWeb
from tests.data_pipeline.filters.judging import judge

BODY = " ".join(f"word{i}" for i in range(40))  # 40 words in one line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("THIS IS SHOuting", "uppercase_line"),  # 9 capitals of 16 characters
        ("HALF upper", None),  # 4 of 10
        ("ABcd EF ab", None),  # 4 of 10, capitals are counted over all characters
        ("2024 10 31", "numeric_line"),
        ("2024-10-31 12", None),
        ("3 likes", "counter_line"),
        ("1.2K Followers!", "counter_line"),
        ("3 people like this", None),
        ("Menu", "one_word_line"),
    ],
)
def test_a_line_goes_for_the_reason_of_its_rule(line, reason):
    verdict = judge(refinedweb, RefinedWeb(max_removed_words=1), f"{BODY}\n{line}\n{BODY} end")
    assert verdict.counts == ({reason: 1} if reason else {})
    assert verdict.text == (f"{BODY}\n{BODY} end" if reason else None)


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("Sign-in to see more", "to see more"),
        ("A short teaser. Read more...", "A short teaser."),
        ("There are 3 items in cart now", "There are 3 now"),
        ("Read more... is not at the end", None),
        ("one two three four five six seven eight nine ten eleven Read more...", None),  # 13 words
    ],
)
def test_a_short_line_loses_the_phrase(line, left):
    verdict = judge(refinedweb, RefinedWeb(max_removed_words=1), f"{BODY}\n{line}")
    assert verdict.text == (left and f"{BODY}\n{left}")
    assert verdict.counts == ({"shortened_line": 1} if left else {})


def test_a_document_goes_when_more_than_a_twentieth_of_its_words_went():
    kept = judge(refinedweb, RefinedWeb(), f"{BODY}\n3 likes")  # 2 of 42
    assert (kept.reason, kept.scores["removed_words"]) == (None, pytest.approx(2 / 42))
    assert judge(refinedweb, RefinedWeb(), f"{BODY}\n3 likes\n4 shares").reason == "too_many_removed_words"  # 4 of 44


def test_other_languages_are_left_alone():
    for language in ("de", None):
        verdict = judge(refinedweb, RefinedWeb(), "MENÜ\n3 likes", language)
        assert (verdict.reason, verdict.text, verdict.scores) == (None, None, {})
