"""What a run does when something goes wrong."""

from dataclasses import asdict, dataclass, field
from enum import Enum

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least, in_range


class OnNonFinite(Enum):
    """What is done when loss or gradient norm is not finite."""

    stop = "stop"
    skip = "skip"  # the update is not made, the optimizer's step count stays, the run goes on with the next batch


class OnSpike(Enum):
    """What is done when the loss is far above the ones before."""

    ignore = "ignore"
    log = "log"  # an event in metrics.jsonl
    skip = "skip"  # the update is not made, the run goes on with the next batch
    rewind = "rewind"  # back to the last good checkpoint, jumping over the batches up to this one (an amendment)


@dataclass
class DeadlinesConfig:
    """For how long a rank may make no progress in a phase before the job ends, in seconds."""

    start: float = 1800.0  # from the process groups to the loop, and each phase of the first step: loading, compiling
    data: float | None = None  # the batch of a step; null, here and below: engine.timeout_seconds
    compute: float | None = None  # forward, backward, update
    validation: float | None = None  # held-out documents and tasks
    checkpoint: float | None = None  # as long as the loop waits for it

    def by_phase(self) -> dict[str, float]:
        """Return those that are set."""
        return {phase: seconds for phase, seconds in asdict(self).items() if seconds is not None}

    def check(self, timeout_seconds: float) -> None:
        """Check them beside `engine.timeout_seconds`."""
        for phase, seconds in self.by_phase().items():
            in_range(f"survive.deadlines.{phase}", seconds, 1, 1e6)
            if phase != "start" and seconds > timeout_seconds:
                raise ConfigError(
                    f"survive.deadlines.{phase}={seconds:g} is above engine.timeout_seconds={timeout_seconds:g}, after "
                    f"which the others no longer wait for this rank; use at most {timeout_seconds:g}, or raise "
                    "engine.timeout_seconds"
                )


@dataclass
class SurviveConfig:
    """What a run does about bad numbers, slow ranks and silent corruption."""

    non_finite: OnNonFinite = OnNonFinite.stop
    spike: OnSpike = OnSpike.log
    spike_sigma: float = 6.0  # standard deviations above the mean of the window
    spike_window: int = 100  # losses of the steps before; no spike is seen before there are as many
    most_interventions: int = 10  # updates skipped and rewinds of the whole run; one more stops it
    compare_replicas_every: int = 0  # optimizer steps between comparisons of weights and moments held twice; 0: never
    replay_steps: list[int] = field(default_factory=list)  # computed twice and compared; the first step is 1
    slow_rank_every: int = 0  # optimizer steps between comparisons of the ranks' own time; 0: never
    slow_rank_factor: float = 1.3  # a rank that takes this many times the median is named
    deadlines: DeadlinesConfig = field(default_factory=DeadlinesConfig)

    def check(self) -> None:
        in_range("survive.spike_sigma", self.spike_sigma, 1, 1e6)
        at_least("survive.spike_window", self.spike_window, 2)
        for step in self.replay_steps:
            at_least("survive.replay_steps", step, 1)
        for name in ("most_interventions", "compare_replicas_every", "slow_rank_every"):
            at_least(f"survive.{name}", getattr(self, name), 0)
        in_range("survive.slow_rank_factor", self.slow_rank_factor, 1.01, 1e6)
