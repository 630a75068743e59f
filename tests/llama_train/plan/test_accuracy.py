"""Predictions against published runs: the errors that docs/planning.md states."""

import statistics

from llama_train.plan.accuracy import MEDIAN_ERROR, comparison
from llama_train.plan.published import published_runs

ROWS = comparison(published_runs())


def test_there_are_enough_runs_of_enough_sources() -> None:
    assert len(ROWS) >= 25
    assert len({row.run.source.split(",")[0] for row in ROWS}) >= 6
    assert len({row.run.name for row in ROWS}) == len(ROWS)


def test_half_of_the_runs_are_held_out() -> None:
    held_out = [row for row in ROWS if not row.run.fits]
    assert abs(len(held_out) - len(ROWS) / 2) <= 3
    assert {row.run.source for row in held_out} >= {row.run.source for row in ROWS if row.run.fits}


def test_the_median_error_of_held_out_speeds_is_what_the_page_says() -> None:
    errors = [abs(row.speed_error) for row in ROWS if not row.run.fits]
    assert statistics.median(errors) <= MEDIAN_ERROR


def test_the_median_error_of_published_memory_is_at_most_a_tenth() -> None:
    errors = [abs(row.memory_error) for row in ROWS if row.memory_error is not None]
    assert len(errors) >= 10
    assert statistics.median(errors) <= 0.10
