"""Golden values counted by hand."""

import pytest

from data_pipeline.document import TextView
from data_pipeline.filters.gopher_quality import NAME, GopherQuality, judge_one


def verdict(text, language="en", **settings):
    return judge_one(TextView(text, language), GopherQuality(**{"min_words": 1, "min_stop_words": 0, **settings}))


def test_scores_are_what_a_person_counts():
    # 8 words; characters 4+3+3+1+5+4+3+3 = 26; 1 hash, 2 ellipses; letters in all but "1234"
    text = "Well... the cat\n# likes 1234 and…\n- cat"
    result = judge_one(TextView(text, "en"), GopherQuality(min_words=1, max_symbol_ratio=1.0, min_alphabetic_words=0.5))
    words = ["Well...", "the", "cat", "#", "likes", "1234", "and…", "-", "cat"]
    assert text.split() == words  # 9 words: "-" is one
    scores = {name.removeprefix(f"{NAME}."): value for name, value in result.scores.items()}
    assert scores == {
        "words": 9,
        "mean_word_length": pytest.approx((7 + 3 + 3 + 1 + 5 + 4 + 4 + 1 + 3) / 9),
        "hash_ratio": pytest.approx(1 / 9),
        "ellipsis_ratio": pytest.approx(2 / 9),
        "alphabetic_words": pytest.approx(6 / 9),
        "stop_words": 1,  # "the"; "and…" is another word
    }
    assert result.reason == "gopher_quality.too_few_stop_words"


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("one two", {"min_words": 3}, "too_few_words"),
        ("one two six", {"min_words": 3}, None),
        ("one two six", {"max_words": 2}, "too_many_words"),
        ("a b c d", {}, "words_too_short"),
        ("one two six", {}, None),  # mean exactly 3
        ("abcdefghij klmnopqrst", {}, None),  # mean exactly 10
        ("abcdefghij klmnopqrstu", {}, "words_too_long"),
        ("word " * 9 + "word#", {}, None),  # 1 in 10, exactly 0.1
        ("word " * 8 + "word#", {}, "too_many_hashes"),
        ("word " * 8 + "word…", {}, "too_many_ellipses"),
        ("word word word word 1234", {}, None),  # exactly 0.8
        ("word word word 1234 5678", {}, "too_few_alphabetic_words"),
        ("\n".join(["- item"] * 10), {"min_mean_word_length": 1, "min_alphabetic_words": 0}, "too_many_bullet_lines"),
        ("\n".join(["- item"] * 9 + ["item"]), {"min_mean_word_length": 1, "min_alphabetic_words": 0}, None),
        ("one two three four five six seven…\n" * 2 + "one two\n" * 4, {}, "too_many_ellipsis_lines"),
        ("one two three four five six seven…\n" * 3 + "one two\n" * 7, {}, None),  # exactly 0.3
    ],
)
def test_each_rule_drops_beyond_its_threshold_and_keeps_on_it(text, settings, reason):
    assert verdict(text, **settings).reason == (reason and f"gopher_quality.{reason}")


def test_stop_words_ask_only_documents_marked_as_english():
    text = "Les enfants jouent dans leur jardin"
    assert verdict(text, "en-GB", min_stop_words=2).reason == "gopher_quality.too_few_stop_words"
    for language in ("fr", None):
        result = verdict(text, language, min_stop_words=2)
        assert result.reason is None
        assert result.abstained == ["gopher_quality.stop_words"]
    assert verdict("The children OF summer", "en", min_stop_words=2).reason is None


def test_word_rules_abstain_where_words_have_no_spaces():
    result = verdict("《战国无双3》是由光荣和开发的战国无双系列的正统第三续作。", "zh", min_words=50)
    assert result.reason is None
    assert set(result.abstained) == {
        f"gopher_quality.{rule}"
        for rule in ("words", "mean_word_length", "symbol_ratio", "alphabetic_words", "stop_words")
    }
    assert verdict("한국어는 띄어쓰기를 하는 언어이다", "ko", min_words=50).reason == "gopher_quality.too_few_words"
