"""Learning rates against values worked out by hand."""

import math

import pytest

from llama_train.config import ScheduleConfig, ScheduleName
from llama_train.optimizer.schedule import learning_rate


def rates(schedule: ScheduleConfig, steps: int, peak: float = 1.0) -> list[float]:
    return [learning_rate(step, peak, schedule, steps) for step in range(steps)]


def test_warm_up_rises_from_above_zero_to_the_peak():
    schedule = ScheduleConfig(ScheduleName.constant, warmup_steps=4)
    assert rates(schedule, 6, peak=2.0) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine_by_hand():
    # The peak at step 1, the floor of 0.1 at step 5; in between the cosine at 45, 90 and 135 degrees.
    middle = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2
    expected = [0.5, 1.0, *middle, 0.1]
    assert rates(ScheduleConfig(warmup_steps=2, final_fraction=0.1), 6) == pytest.approx(expected, rel=1e-15)


def test_linear_by_hand():
    schedule = ScheduleConfig(ScheduleName.linear, warmup_steps=1, final_fraction=0.2)
    assert rates(schedule, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], rel=1e-15)


def test_warmup_stable_decay_by_hand():
    schedule = ScheduleConfig(ScheduleName.warmup_stable_decay, warmup_steps=2, decay_steps=4, final_fraction=0.0)
    assert rates(schedule, 9) == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.0], rel=1e-15)


def test_warmup_stable_decay_of_no_length_never_decays():
    schedule = ScheduleConfig(ScheduleName.warmup_stable_decay, decay_steps=0)
    assert rates(schedule, 3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ScheduleName)
@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
def test_the_peak_is_where_warm_up_ends_and_the_floor_at_the_last_step(name, warmup):
    schedule = ScheduleConfig(name, warmup_steps=warmup, decay_steps=0 if warmup == 100 else 50, final_fraction=0.1)
    values = rates(schedule, 100, peak=3e-4)
    assert values[max(warmup - 1, 0)] == max(values) == 3e-4
    assert all(value > 0 for value in values)
    assert values[: max(warmup, 1)] == sorted(values[: max(warmup, 1)])
    assert values[max(warmup - 1, 0) :] == sorted(values[max(warmup - 1, 0) :], reverse=True)
    if name is not ScheduleName.constant and warmup < 100:
        assert values[-1] == pytest.approx(3e-5, rel=1e-15)
        assert values[-2] > values[-1]


def test_total_steps_sets_the_end_whatever_the_run_is():
    schedule = ScheduleConfig(ScheduleName.linear, total_steps=11, final_fraction=0.0)
    assert learning_rate(5, 1.0, schedule, steps=6) == 0.5
    assert learning_rate(10, 1.0, schedule, steps=100) == 0.0
    assert learning_rate(99, 1.0, schedule, steps=100) == 0.0


def test_a_run_of_one_step_takes_it_at_the_peak():
    assert rates(ScheduleConfig(), 1, peak=0.3) == [0.3]
