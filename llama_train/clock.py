"""Where the wall time of a step goes, and what the watchdog hears of it."""

import contextlib
import os
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


class StartClock:
    """What the time from the start of this process to its loop is spent on."""

    def __init__(self) -> None:
        age = _process_age()
        self.started_at = time.time() - age  # seconds since the epoch
        self._last = time.perf_counter() - age
        self._seconds: dict[str, float] = {}
        self._tell: Callable[[str], None] | None = None

    def follow(self, tell: Callable[[str], None]) -> None:
        """From now on call `tell` with what has been done last."""
        self._tell = tell

    def done(self, name: str) -> None:
        """Say that what took the time since the last call was `name`."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now
        if self._tell is not None:
            self._tell(f"after {name}")

    def take(self) -> dict[str, float]:
        """Return the seconds by name."""
        return dict(self._seconds)


def _process_age() -> float:
    """Return for how many seconds this process has existed; 0 where the system does not say."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            ticks = int(stat.read().rpartition(")")[2].split()[19])  # proc(5): starttime, the 22nd field
            return max(float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError):
        return 0.0
