"""Where the wall time of a step goes, and what the watchdog hears of it."""

import contextlib
import time
from collections.abc import Callable, Iterator


class StepClock:
    """Accumulates seconds per phase between two records.

    A phase that runs after a step's record (its checkpoint, its validation) is counted in the next record, so that
    the record of a step is on disk before the checkpoint that makes the step permanent.
    """

    def __init__(self, beat: Callable[[int, str], None]) -> None:
        """Args: beat: told (step, phase) at the start of every phase."""
        self.beat = beat
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, step: int, name: str) -> Iterator[None]:
        self.beat(step, name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds per phase since the last call, and start again."""
        seconds, self.seconds = self.seconds, {}
        return seconds
