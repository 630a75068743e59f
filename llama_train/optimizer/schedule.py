"""The learning rate of a step: pure functions of the step, so that a resumed run needs no state for it."""

import math

from llama_train.config import ScheduleConfig, ScheduleName


def learning_rate(step: int, peak: float, schedule: ScheduleConfig, steps: int) -> float:
    """Return the learning rate of the update that `step` makes.

    Warm-up is linear from 0 and reaches the peak on its last step, `warmup_steps - 1`; without warm-up step 0 is at
    the peak. Every schedule but `constant` reaches the floor, `peak * final_fraction`, exactly on its last step,
    `total_steps - 1`, and stays there after it (a decay over 0 steps never begins).

    - cosine: half a wave from the peak to the floor (Loshchilov and Hutter 2017, equation 5, without restarts).
    - linear: a straight line from the peak to the floor.
    - constant: the peak.
    - warmup_stable_decay: the peak (Hu et al. 2024, MiniCPM), then over the last `decay_steps` a straight line to the
      floor (Hägele et al. 2024).

    Args:
        step: counted from 0, the first update.
        peak: the highest learning rate.
        steps: of the whole run; the schedule ends there if `schedule.total_steps` is null.
    """
    assert step >= 0, step
    last = (schedule.total_steps or steps) - 1
    warmed_up = max(schedule.warmup_steps - 1, 0)
    if step <= warmed_up:
        return peak * (step + 1) / max(schedule.warmup_steps, 1)
    floor = peak * schedule.final_fraction
    match schedule.name:
        case ScheduleName.constant:
            return peak
        case ScheduleName.cosine:
            return floor + (peak - floor) * (1 + math.cos(math.pi * _progress(step, warmed_up, last))) / 2
        case ScheduleName.linear:
            return peak + (floor - peak) * _progress(step, warmed_up, last)
        case ScheduleName.warmup_stable_decay:
            assert schedule.decay_steps is not None
            return peak + (floor - peak) * _progress(step, last - schedule.decay_steps, last)


def _progress(step: int, start: int, end: int) -> float:
    """Return how far `step` is from `start` (0) to `end` (1); 0 before and 1 after."""
    if step <= start:
        return 0.0
    return 1.0 if step >= end else (step - start) / (end - start)
