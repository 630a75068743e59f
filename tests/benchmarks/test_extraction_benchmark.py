import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("extraction", Path(__file__).parents[2] / "benchmarks" / "extraction.py")
extraction = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(extraction)


def test_the_score_is_that_of_shingles_counted_by_hand():
    # truth: abcd bcde; answer: abcd bcde cdef defg -> 2 of 4 found are right, 2 of 2 expected are found
    assert extraction.score(["a b c d e"], ["a b c d e f g"]) == (0.5, 1.0, pytest.approx(2 / 3))
    # a shorter text is one shingle; a page without an answer says nothing about precision
    assert extraction.score(["a b", "x y"], ["a, b!", ""]) == (1.0, 0.5, pytest.approx(2 / 3))
    # repeated shingles count as often as they occur: aaaa twice expected, once found
    assert extraction.score(["a a a a a"], ["a a a a"]) == (1.0, 0.5, pytest.approx(2 / 3))
