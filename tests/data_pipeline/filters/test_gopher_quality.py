"""Golden values counted by hand."""

import pytest

from data_pipeline.filters import gopher_quality
from data_pipeline.filters.gopher_quality import GopherQuality
from data_pipeline.filters.words import Definition
from data_pipeline.text import Segmenter, Unspaced
from tests.data_pipeline.filters.judging import judge

WORD_SCORES = {"words", "word_length", "hash_ratio", "ellipsis_ratio", "alphabetic_words", "stop_words"}


def judged(text, language="en", **settings):
    return judge(gopher_quality, GopherQuality(**{"min_words": 1, "min_stop_words": 0, **settings}), text, language)


def test_scores_are_what_a_person_counts():
    # one hash, two ellipses; letters in all but "#", "1234" and "-"
    text = "Well... the cat\n# likes 1234 and…\n- cat"
    assert judged(text).scores == {
        "words": 9,  # Well... the cat # likes 1234 and… - cat
        "word_length": pytest.approx((7 + 3 + 3 + 1 + 5 + 4 + 4 + 1 + 3) / 9),
        "hash_ratio": pytest.approx(1 / 9),
        "ellipsis_ratio": pytest.approx(2 / 9),
        "alphabetic_words": pytest.approx(6 / 9),
        "stop_words": 1,  # "the"; "and…" is another word
        "bullet_lines": pytest.approx(1 / 3),
        "ellipsis_lines": pytest.approx(1 / 3),
    }


def test_the_definitions_differ_where_they_are_said_to():
    text = "The the the cat…\n\n# likes 1234 and…\n- # of"
    # words: The the the cat… # likes 1234 and… - # of (11); lengths 3 3 3 4 1 5 4 4 1 1 2
    datatrove = judged(text, definition=Definition.datatrove).scores
    assert datatrove["words"] == 8  # without "#" twice and "-"
    assert datatrove["word_length"] == pytest.approx(28 / 8)
    assert (datatrove["hash_ratio"], datatrove["ellipsis_ratio"]) == pytest.approx((2 / 11, 2 / 11))
    assert datatrove["alphabetic_words"] == pytest.approx(7 / 11)
    assert datatrove["stop_words"] == 2  # "the" and "of"
    dolma = judged(text, definition=Definition.dolma).scores
    assert (dolma["words"], dolma["word_length"]) == (11, 3)  # 1 1 1 2 3 [3] 3 4 4 4 5
    assert dolma["hash_ratio"] == dolma["ellipsis_ratio"] == pytest.approx(4 / 11)  # two "#", two with "…"
    assert dolma["stop_words"] == 3  # the, the, of
    assert (dolma["bullet_lines"], dolma["ellipsis_lines"]) == (1 / 4, 2 / 4)  # the blank line is one
    assert judged(text).scores["stop_words"] == 2


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
        ("\n".join(["- item"] * 10), {"min_word_length": 1, "min_alphabetic_words": 0}, "too_many_bullet_lines"),
        ("\n".join(["- item"] * 9 + ["item"]), {"min_word_length": 1, "min_alphabetic_words": 0}, None),
        ("one two three four five six seven…\n" * 2 + "one two\n" * 4, {}, "too_many_ellipsis_lines"),
        ("one two three four five six seven…\n" * 3 + "one two\n" * 7, {}, None),  # exactly 0.3
    ],
)
def test_each_rule_drops_beyond_its_threshold_and_keeps_on_it(text, settings, reason):
    assert judged(text, **settings).reason == reason


def test_stop_words_ask_only_documents_marked_as_english():
    text = "Les enfants jouent dans leur jardin"
    assert judged(text, "en-GB", min_stop_words=2).reason == "too_few_stop_words"
    for language in ("fr", None):
        result = judged(text, language, min_stop_words=2)
        assert result.reason is None
        assert result.abstained == {"stop_words"}
    assert judged("The children OF summer", "en", min_stop_words=2).reason is None


def test_word_rules_abstain_where_words_have_no_spaces():
    text = "《战国无双3》是由光荣和开发的战国无双系列的正统第三续作。"
    result = judged(text, "zh", min_words=50)
    assert result.reason is None
    assert result.abstained == WORD_SCORES
    assert judged("한국어는 띄어쓰기를 하는 언어이다", "ko", min_words=50).reason == "too_few_words"


def test_word_rules_take_characters_for_words_where_they_are_told_to():
    text = "《战国无双3》是由光荣。"
    result = judged(text, "zh", unspaced=Unspaced.characters, min_word_length=1)
    assert result.scores["words"] == 11  # 《 战 国 无 双 3》 是 由 光 荣 。
    assert judged(text, "zh", unspaced=Unspaced.characters, words=Segmenter.uax29).scores["words"] == 9


def test_an_empty_document_has_no_words_and_no_shares():
    result = judged("")
    assert result.reason == "too_few_words"
    assert result.scores == {"words": 0, "stop_words": 0}
