"""Asked to stop: finish the step, write a checkpoint, leave."""

import atexit
import os
import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHER_ENDED = "its launcher, which has ended"
_NUMBERS = {**{each.name: int(each) for each in SIGNALS}, LAUNCHER_ENDED: int(signal.SIGHUP)}
_SAME_PRESS_SECONDS = 1.0
"""Ctrl-C reaches a process under torchrun twice, from the terminal and from torchrun; it is still one request."""


_remembered: list[str] = []


def remember_stop() -> None:
    """From now on SIGUSR1 does not kill this process: one that comes before the run begins stops it at its first step.

    SLURM warns a job ahead of its time limit whatever its ranks are doing, and by default the signal is deadly. The
    launcher holds it back until here (launch/hold.py), and from the last line of Python on it is ignored.
    """
    signal.signal(signal.SIGUSR1, lambda number, frame: _remembered.append(signal.Signals(number).name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)


class StopRequest:
    """While open, SIGTERM, SIGINT and SIGUSR1 only set `requested`; a second Ctrl-C interrupts at once.

    Only the main thread of a process may open it. The handlers that were there before come back at the end.

    Args:
        starting: until `started` is called SIGTERM ends the process at once: there is nothing to save yet, and a rank
            that waits for one that died at the start would make torchrun wait its 30 s.
    """

    def __init__(self, starting: bool = False) -> None:
        self._starting = starting
        self.requested: str | None = _remembered.pop() if _remembered else None
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._interrupted_at: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def started(self) -> None:
        """From here on there is something to save."""
        self._starting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._starting and number == signal.SIGTERM:
            os.write(2, b"stopped by SIGTERM before the first step\n")
            os._exit(128 + number)
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is not None and now - self._interrupted_at > _SAME_PRESS_SECONDS:
                raise KeyboardInterrupt
            self._interrupted_at = self._interrupted_at or now
        self.requested = self.requested or signal.Signals(number).name

    def agreed(self, group: Any = None) -> str | None:
        """Return what has asked any rank to stop, the same on every rank: a signal's name, `LAUNCHER_ENDED`, or None.

        Every rank calls it at the same step, so that all of them stop after the same one. A rank whose torchrun was
        killed asks, too: nobody would end it, and no other process could go on with the run.

        Args:
            group: a gloo process group of all ranks; None in a run of one process.
        """
        if self._launcher not in (None, os.getppid()):
            self.requested = self.requested or LAUNCHER_ENDED
        if group is None:
            return self.requested
        import torch
        import torch.distributed

        mine = _NUMBERS[self.requested] if self.requested else 0
        number = torch.tensor([mine], dtype=torch.int64)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=group)
        if number:
            # the rank that reports may not be the one that was asked
            self.requested = next(name for name, each in _NUMBERS.items() if each == number)
        return self.requested
