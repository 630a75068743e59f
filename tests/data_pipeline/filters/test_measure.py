import numpy as np

from data_pipeline.filters.measure import KEEP, Measurement, Rule, decide


def test_a_document_on_a_threshold_passes_and_an_abstaining_rule_keeps():
    rule = Rule("few", "words", minimum=2, maximum=4)
    values = np.array([1, 2, 3, 4, 5, np.nan])
    assert rule.passes(values).tolist() == [False, True, True, True, False, True]


def test_the_first_failing_rule_names_the_drop_and_plain_drops_come_first():
    measurement = Measurement(
        {"a": np.array([0.0, 5, 5, 5]), "b": np.array([9.0, 9, 0, 0])},
        drops={"listed": np.array([False, False, False, True])},
    )
    verdicts, reasons = decide(measurement, [Rule("low", "a", minimum=1), Rule("high", "b", maximum=1)], 4)
    assert [reasons[v] if v != KEEP else None for v in verdicts] == ["low", "high", None, "listed"]
