import pytest

from data_pipeline.filters import fineweb
from data_pipeline.filters.fineweb import FineWeb
from data_pipeline.filters.words import Definition
from tests.data_pipeline.filters.judging import judge

LONG = "a line that is clearly longer than thirty characters"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([f"{LONG} {i}" for i in range(8)] + [f"{LONG}."], "too_few_punctuated_lines"),  # 1 of 9 is 0.111
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
    assert judge(fineweb, FineWeb(), "\n".join(lines), None).reason == reason


def test_scores_are_what_a_person_counts():
    text = "Hello there.\n" + "x" * 31 + "\n\nHello there."
    assert judge(fineweb, FineWeb(), text).scores == {
        "punctuated_lines": pytest.approx(2 / 3),
        "short_lines": pytest.approx(2 / 3),
        "duplicate_characters": pytest.approx(12 / 55),
        "newlines": pytest.approx(3 / 5),
    }


def test_datatrove_divides_by_all_characters_but_newlines():
    text = "Hello there. \n\nHello there. \nab"
    datatrove = judge(fineweb, FineWeb(definition=Definition.datatrove), text)
    assert datatrove.scores["duplicate_characters"] == pytest.approx(12 / (13 + 13 + 2))
    assert judge(fineweb, FineWeb(), text).scores["duplicate_characters"] == pytest.approx(12 / 26)
