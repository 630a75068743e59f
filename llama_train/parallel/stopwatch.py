"""How long a device computes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up stretches of time in seconds; on CUDA the device's, to be read once it has caught up."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stretches: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        started = self._now()
        yield
        self._stretches.append((started, self._now()))

    def seconds(self) -> float:
        if self._cuda:
            return sum(start.elapsed_time(end) for start, end in self._stretches) / 1000
        return sum(end - start for start, end in self._stretches)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
