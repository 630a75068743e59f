"""How much of its time a job trains, given how often it fails: in closed form, and by rolling dice.

Failures come at random at a constant rate for every device (a Poisson process), so that of the job is their sum. A
failure loses what was trained since the last whole checkpoint and then `restart_seconds`. During a restart the job may
fail again.
"""

import math
import random
from dataclasses import dataclass

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Job:
    """What goodput depends on."""

    faults_per_device_hour: float
    devices: int
    restart_seconds: float  # from a failure to the first new step: found, scheduled, started, loaded
    stall_seconds: float = 0.0  # that one checkpoint keeps the loop waiting
    write_seconds: float = 0.0  # from the end of the stall until the checkpoint can be loaded; at most an interval

    @property
    def mean_seconds_between_faults(self) -> float:
        """Of the whole job; infinity where nothing fails."""
        rate = self.faults_per_device_hour * self.devices
        return HOUR / rate if rate else math.inf


def goodput(job: Job, interval_seconds: float) -> float:
    """Return the expected share of wall time spent on steps that last, with a checkpoint every `interval_seconds`.

    Daly (2006, "A higher order estimate of the optimum checkpoint interval", eq. 20): with rate r = 1 / mean seconds
    between faults, `interval + stall` seconds of work take exp(r restart) (exp(r (interval + stall)) - 1) / r seconds.
    A fault while a checkpoint is still being written goes back to the one before: on average that loses `write_seconds`
    more, which are counted as part of the restart. Two are never written at once: the loop waits for the one before.
    """
    mean = job.mean_seconds_between_faults
    work = interval_seconds + job.stall_seconds + max(job.write_seconds - interval_seconds, 0.0)
    if math.isinf(mean):
        return interval_seconds / work
    lost = job.restart_seconds + job.write_seconds
    if (lost + work) / mean > 700:  # beyond float64: nothing ever lasts
        return 0.0
    return interval_seconds / (mean * math.exp(lost / mean) * math.expm1(work / mean))


def best_interval(job: Job, least_seconds: float = 1.0, most_seconds: float = 30 * DAY) -> float:
    """Return the seconds between checkpoints with the highest goodput, by golden-section search on a log scale.

    Without a stall it is `least_seconds`, usually the time of a step.
    """
    low, high = math.log(least_seconds), math.log(most_seconds)
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if goodput(job, math.exp(first)) >= goodput(job, math.exp(second)):
            high = second
        else:
            low = first
    return math.exp((low + high) / 2)


def most_restart_seconds(target: float, job: Job, interval_seconds: float) -> float:
    """Return the longest restart with which goodput reaches `target`; negative where none does.

    From goodput's formula, solved for the restart.
    """
    mean = job.mean_seconds_between_faults
    work = interval_seconds + job.stall_seconds
    return mean * math.log(interval_seconds / (target * mean * math.expm1(work / mean))) - job.write_seconds


@dataclass(frozen=True)
class Simulated:
    """What one simulated stretch of time came to, in seconds."""

    faults: int
    trained: float  # on steps that last
    recomputed: float  # lost since the last checkpoint
    restarting: float
    stalled: float  # waiting for checkpoints, those that were lost too

    @property
    def goodput(self) -> float:
        return self.trained / (self.trained + self.recomputed + self.restarting + self.stalled)


def simulate(job: Job, interval_seconds: float, seconds: float, seed: int) -> Simulated:
    """Roll dice for at least `seconds` of wall time, fault by fault, and end with a checkpoint.

    The checkpoint that a restart begins from is whole; one that is still being written at a fault is lost with all
    that was trained for it.
    """
    assert job.write_seconds <= interval_seconds, (job, interval_seconds)
    dice = random.Random(seed)
    rate = 1 / job.mean_seconds_between_faults
    faults, trained, recomputed, restarting, stalled, now = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    cycle = interval_seconds + job.stall_seconds
    while now < seconds:
        until = dice.expovariate(rate) if rate else math.inf
        done = min(int(until // cycle) if until < math.inf else math.inf, math.ceil((seconds - now) / cycle))
        now += done * cycle
        stalled += done * job.stall_seconds
        if now >= seconds:
            trained += done * interval_seconds
            break
        faults += 1
        lost = until - done * cycle
        if done and lost < job.write_seconds:
            done -= 1
            recomputed += interval_seconds
        trained += done * interval_seconds
        recomputed += min(lost, interval_seconds)
        stalled += max(lost - interval_seconds, 0.0)
        now += lost
        while True:  # a restart during which the next fault comes begins again
            until = dice.expovariate(rate)
            restarting += min(until, job.restart_seconds)
            now += min(until, job.restart_seconds)
            if until >= job.restart_seconds:
                break
            faults += 1
    return Simulated(faults, trained, recomputed, restarting, stalled)


LLAMA3_DAYS = 54
LLAMA3_DEVICES = 16_384
LLAMA3_UNEXPECTED = 419
"""Unexpected interruptions. All three: Llama Team 2024, "The Llama 3 Herd of Models", section 3.3.4."""

LLAMA3_LEAST_EFFECTIVE = 0.9
"""Published: "higher than 90% effective training time". Neither the restarts nor the checkpoint interval are."""


def llama3_job(restart_seconds: float, stall_seconds: float) -> Job:
    """Return the published run with restarts and stalls that were not published."""
    rate = LLAMA3_UNEXPECTED / (LLAMA3_DEVICES * LLAMA3_DAYS * 24)
    return Job(rate, LLAMA3_DEVICES, restart_seconds, stall_seconds)
