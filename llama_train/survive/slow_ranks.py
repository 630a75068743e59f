"""Which rank keeps the others waiting, from the time that each spends by itself.

In a job that moves in step every rank's wall time is the same, so what counts is a rank's own: the wall time outside of
the engine's step (its batch, its host), and, on a CPU, the processor time inside of it. A device whose kernels are slow
is not seen: its host waits like the others.
"""

import json
import statistics
import time

from llama_train.checkpoint.collective import gather_bytes
from llama_train.distributed import World

LEAST_SECONDS = 0.01
"""A rank is not called slow for less than this per step: that is noise of the operating system."""


class SlowRanks:
    """Adds up this rank's own time and compares it with that of the others after every `every`-th step; 0: never."""

    def __init__(self, every: int, factor: float, world: World) -> None:
        self._every, self._factor, self._world = every, factor, world
        self._own = 0.0
        self._steps = 0
        self._at = (0.0, 0.0)

    def begin(self) -> None:
        """A step begins."""
        self._at = (time.perf_counter(), 0.0)

    def computing(self) -> None:
        """The engine's step begins, in which ranks wait for each other."""
        self._own += time.perf_counter() - self._at[0]
        self._at = (0.0, time.process_time())

    def step_done(self, step: int) -> str | None:
        """The engine's step `step`, counted from 1, is over; return on rank 0 who is slow, if it is time to look."""
        if self._world.device.type == "cpu":
            self._own += time.process_time() - self._at[1]
        self._steps += 1
        if self._every == 0 or step % self._every:
            return None
        mine = json.dumps([self._world.host, self._own / self._steps]).encode()
        self._own, self._steps = 0.0, 0
        return slowest([json.loads(part) for part in gather_bytes(mine, self._world.control)], self._factor)


def slowest(ranks: list[tuple[str, float]], factor: float) -> str | None:
    """Name the ranks that take `factor` times as long as the median one; None if there are none.

    Args:
        ranks: host and own seconds a step of every rank, in order; empty on ranks other than 0.
    """
    if len(ranks) < 2:
        return None
    median = statistics.median_low([seconds for _, seconds in ranks])
    slow = [
        f"rank {rank} ({host}) takes {seconds:.3f} s a step"
        for rank, (host, seconds) in enumerate(ranks)
        if seconds > factor * median and seconds - median > LEAST_SECONDS
    ]
    if not slow:
        return None
    more = f" and {len(slow) - 8} more" if len(slow) > 8 else ""
    return f"slow rank: {', '.join(slow[:8])}{more} of its own, the median rank {median:.3f} s"
