import pytest

from data_pipeline.report.mask import mask
from data_pipeline.report.statistics import StageStatistics


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.example.co.uk, please", "write to [e-mail], please"),
        ("jane [at] example.org", "[e-mail]"),
        ("call +49 (0)30 901820 now", "call +[phone] now"),
        ("call (555) 123-4567.", "call ([phone]."),
        ("4111 1111 1111 1111", "[card]"),
        ("from 192.168.10.44 and 2001:db8::ff00:42:8329", "from [ip] and [ip]"),
        ("٠١٢٣٤٥٦٧٨٩ in Arabic digits", "[phone] in Arabic digits"),
        ("at 12:30:59 in 1914, 3.14 times, version 1.2.3.4.5, a1234567", None),
        ("1,000,000 people, std::vector, a :: b, Price: 12: 13", None),
    ],
)
def test_personal_data_is_masked_and_plain_numbers_are_not(text, masked):
    assert mask(text) == (text if masked is None else masked)


def test_an_example_is_masked_before_it_is_kept_even_where_it_is_cut():
    statistics = StageStatistics("c4")
    text = "x" * 380 + " jane.doe@example.org and more"
    statistics.example("c4.rule", {"hash": 1, "record_id": "ab", "text": text})
    (kept,) = statistics.examples["c4.rule"]
    assert kept["text"] == "x" * 380 + " [e-mail] and more"
    assert StageStatistics.from_json(statistics.to_json()).examples["c4.rule"] == [kept]
