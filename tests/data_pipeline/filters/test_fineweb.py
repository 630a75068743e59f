import pytest

from data_pipeline.document import TextView
from data_pipeline.filters.fineweb import FineWeb, judge_one

LONG = "a line that is clearly longer than thirty characters"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([f"{LONG} {i}" for i in range(8)], "too_few_punctuated_lines"),
        ([f"{LONG} {i}" for i in range(7)] + [f"{LONG}."], None),  # 1 of 8 is 0.125
        (["short one."] + [f"{LONG} {i}." for i in range(2)], None),
        (["short one.", "short two.", "short three.", f"{LONG}."], "too_many_short_lines"),  # 3 of 4
        ([f"{LONG}.", f"{LONG}."], "duplicate_lines"),
        (["a_word_of_more_than_thirty_characters" + str(i) + "." for i in range(9)], "too_many_newlines"),
        (["月" * 31 + "。" + str(i) + "。" for i in range(9)], None),  # no words: the newline rule abstains
        ([], "empty"),
    ],
)
def test_each_rule_has_its_reason(lines, reason):
    assert judge_one(TextView("\n".join(lines), None), FineWeb()).reason == (reason and f"fineweb.{reason}")


def test_scores_are_what_a_person_counts():
    text = "Hello there.\n" + "x" * 31 + "\n\nHello there."
    settings = FineWeb(max_duplicate_characters=1, max_newlines=1)
    scores = judge_one(TextView(text, None), settings).scores
    assert scores == {
        "fineweb.punctuated_lines": pytest.approx(2 / 3),
        "fineweb.short_lines": pytest.approx(2 / 3),
        "fineweb.duplicate_characters": pytest.approx(12 / 55),
        "fineweb.newlines": pytest.approx(3 / 5),
    }
