import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.report.histogram import bin_numbers, count_bins, lower_edge, upper_edge


@pytest.mark.parametrize(
    ("value", "edge"),
    [
        *[(0, 0), (0.29, 0.29), (0.57, 0.57), (0.999, 0.99), (1, 1), (1.99, 1.9), (57, 57), (57.9, 57), (99.9, 99)],
        *[(100, 100), (149, 140), (150, 150), (1e6, 1e6), (1_299_999, 1_200_000)],
        *[(-0.004, -0.01), (-0.29, -0.29), (-57, -57), (-149, -150)],
    ],
)
def test_a_value_falls_into_the_bin_of_its_two_leading_digits(value, edge):
    (bins,) = count_bins(np.array([[float(value)]]))
    assert bins == {f"{edge:g}" if abs(edge) < 1e5 else str(int(edge)): 1}


@given(st.floats(0, 1e17))
def test_a_bin_begins_at_or_below_its_value_and_ends_above_it(value):
    edge = lower_edge(int(bin_numbers(np.array([value]))[0]))
    width = Fraction(1, 100) if value < 1 else Fraction(10) ** math.floor(math.log10(Fraction(value))) / 10
    assert Fraction(edge) <= Fraction(value) + width / 10**8
    assert Fraction(value) < Fraction(edge) + width * (1 + Fraction(1, 10**8))
    assert upper_edge(edge) > value * (1 - 1e-9)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=50))
def test_bins_are_in_the_order_of_the_values(values):
    numbers = bin_numbers(np.sort(np.array(values)))
    assert (np.diff(numbers) >= 0).all()
    edges = [lower_edge(number) for number in numbers.tolist()]
    assert edges == sorted(edges)


def test_rows_are_counted_apart_and_nan_is_left_out():
    scores = np.array([[0.5, np.nan, 0.501, 3.0], [np.nan] * 4, [-2.0, 1e30, 50.0, 50.0]])
    first, second, third = count_bins(scores)
    assert first == {"0.5": 2, "3": 1}
    assert second == {}
    assert third["-2"] == 1
    assert third["50"] == 2
    assert sum(third.values()) == 4
