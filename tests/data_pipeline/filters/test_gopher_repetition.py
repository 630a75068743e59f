"""Golden values counted by hand, and every n-gram share against a definition in plain loops."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.document import TextView
from data_pipeline.filters.gopher_repetition import (
    GopherRepetition,
    duplicate_shares,
    duplicated_ngram_share,
    judge_one,
    repeated_ngrams,
    top_ngram_share,
)


def reference_top(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    top = max(counts.values(), default=0)
    if top < 2:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == top)
    return min(1.0, top * longest / sum(map(len, words)))


def reference_duplicated(words, n):
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / sum(map(len, words)) if words else 0.0


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "ж", "日本"]), max_size=40))
def test_ngram_shares_equal_the_plain_definition(words):
    lengths = np.array([len(word) for word in words], np.int64)
    for n, places, ids in repeated_ngrams(words, largest=10):
        assert top_ngram_share(places, ids, n, lengths) == pytest.approx(reference_top(words, n))
        assert duplicated_ngram_share(places, ids, n, lengths) == pytest.approx(reference_duplicated(words, n))


def test_ngram_shares_counted_by_hand():
    # "to be or not to be": 13 characters in words; "to be" twice, 4 characters each
    words = ["to", "be", "or", "not", "to", "be"]
    lengths = np.array([2, 2, 2, 3, 2, 2])
    (_, *pairs), (_, *triples), *_ = repeated_ngrams(words, largest=10)
    assert top_ngram_share(*pairs, 2, lengths) == pytest.approx(8 / 13)
    assert duplicated_ngram_share(*pairs, 2, lengths) == pytest.approx(4 / 13)  # the first one is not counted
    assert top_ngram_share(*triples, 3, lengths) == 0


def test_duplicate_shares_count_from_the_second_occurrence():
    assert duplicate_shares(["aa", "bbbb", "aa", "aa"]) == (2 / 4, 4 / 10)
    assert duplicate_shares([]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join("axbcxdefgx"), None),  # 2 of 10 lines, 2 of 10 characters: exactly 0.20
        ("x\n" * 5 + "\n".join("abcdefg"), "duplicate_lines"),  # 4 of 12
        ("x\n" * 4 + "\n".join("abcdefg"), "duplicate_line_characters"),  # 3 of 11 lines, 27 % of characters
        ("x\ny\n\nx\ny\n\na\nb\n\nx\ny", "duplicate_lines"),
        ("x y\n\nx y\n\nx y\n\nab", "duplicate_lines"),
        ("one two, one two, one two, a b c d e f", "top_2_gram"),  # "one two," twice: 14 of 27
        ("a b c d e f g h i j k l m n", None),
    ],
)
def test_the_first_rule_that_fails_names_the_drop(text, reason):
    assert judge_one(TextView(text, "en"), GopherRepetition()).reason == (reason and f"gopher_repetition.{reason}")


def test_duplicate_paragraphs_are_seen_when_lines_are_allowed():
    limits = GopherRepetition(max_lines=1.0, max_line_characters=1.0)
    text = "first line\nsecond line\n\nother\n\nfirst line\nsecond line\n\nfirst line\nsecond line"
    assert judge_one(TextView(text, "en"), limits).reason == "gopher_repetition.duplicate_paragraphs"


def test_a_long_repeated_passage_is_dropped_by_its_ngrams():
    passage = " ".join(f"word{i}" for i in range(30))
    rest = " ".join(f"other{i}" for i in range(60))
    verdict = judge_one(TextView(f"{passage} {rest} {passage}", "en"), GopherRepetition())
    assert verdict.reason == "gopher_repetition.duplicated_5_grams"
    # 30 of 120 words, of 4 + 1 or 2 digits against 5 + 1 or 2: 170 of 2 * 170 + 410 characters
    assert verdict.scores["gopher_repetition.duplicated_5_grams"] == pytest.approx(170 / 750)


def test_ngrams_abstain_without_spaces_and_lines_still_count():
    verdict = judge_one(TextView("床前明月光\n疑是地上霜", "zh"), GopherRepetition())
    assert verdict.reason is None
    assert verdict.abstained == ["gopher_repetition.top_ngrams", "gopher_repetition.duplicated_ngrams"]
    repeated = judge_one(TextView("床前明月光\n" * 5, "zh"), GopherRepetition())
    assert repeated.reason == "gopher_repetition.duplicate_lines"
