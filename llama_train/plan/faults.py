"""What faults leave of a run's time."""

from dataclasses import dataclass

from llama_train.plan.settings import PlanSettings
from llama_train.survive.goodput import Job, best_interval, goodput


@dataclass(frozen=True)
class Goodput:
    """Shares of the wall time that go into steps that last."""

    hours_between_faults: float  # of the whole job
    planned: float | None  # with the recipe's checkpoint.every; None: it makes no checkpoints on the way
    best: float
    best_every: int  # steps between checkpoints


def expected_goodput(
    settings: PlanSettings, devices: int, seconds_of_a_step: float, checkpoint_every: int
) -> Goodput | None:
    """Return what `llama_train.survive.goodput` expects; None where no rate of faults was given."""
    if settings.faults_per_device_hour is None:
        return None
    job = Job(
        settings.faults_per_device_hour,
        devices,
        settings.restart_seconds,
        settings.stall_seconds,
        settings.write_seconds,
    )
    every = max(round(best_interval(job, least_seconds=seconds_of_a_step) / seconds_of_a_step), 1)
    planned = goodput(job, checkpoint_every * seconds_of_a_step) if checkpoint_every else None
    hours = job.mean_seconds_between_faults / 3600
    return Goodput(hours, planned, goodput(job, every * seconds_of_a_step), every)
