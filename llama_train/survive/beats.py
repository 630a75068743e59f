"""What ranks tell each other about how far they are, and who it is when things stand still.

Each rank writes one small JSON record over its last one, about twice a second, under its own key of the job's
store. Nobody reads the others' until something is wrong, so the traffic does not grow with ranks squared.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL_SECONDS = 0.5
SILENT_SECONDS = 3.0
"""A rank that writes nothing for this long, while it is being watched, is dead or stopped."""


@dataclass(frozen=True)
class Beat:
    """How far a rank is. Two beats of one rank differ in `count` if it lived in between."""

    rank: int
    host: str
    step: int
    phase: str
    part: int  # how many phases of this step it has begun: every rank goes through the same ones
    since: float  # seconds since the epoch when it last made progress
    place: str  # file, line and function its main thread is in
    waiting: bool  # whether that is a collective
    count: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host})"


class Board:
    """The job's store, as the ranks use it to watch each other. It has a connection of its own.

    Args:
        store: a `torch.distributed.Store` that all ranks share; it outlives the ranks' process groups.
    """

    def __init__(self, store: Any, world: int) -> None:
        self.store = store.clone()  # another thread may be waiting on the connection that we were given
        self._world = world
        self.prefix = f"watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def write(self, beat: Beat) -> None:
        self.store.set(self._key(beat.rank), json.dumps(asdict(beat)))

    def read(self, ranks: Collection[int] | None = None) -> dict[int, Beat]:
        """Return the last beat of every rank, or of `ranks`, that ever wrote one."""
        keys = [self._key(rank) for rank in (range(self._world) if ranks is None else ranks)]
        if not self.store.check(keys):
            keys = [key for key in keys if self.store.check([key])]
        beats = [Beat(**json.loads(value)) for value in self.store.multi_get(keys)] if keys else []
        return {beat.rank: beat for beat in beats}

    def accuse(self, failure: str) -> str:
        """Publish why the job ends; return what was published first, by whomever."""
        return self.store.compare_set(f"{self.prefix}/failure", "", failure).decode()

    def failure(self) -> str | None:
        """Return why the job ends, if anybody said so."""
        key = f"{self.prefix}/failure"
        return self.store.get(key).decode() if self.store.check([key]) else None

    def watch(self, me: int, ended: Callable[[], list[int]]) -> tuple[dict[int, Beat], list[int], list[int]]:
        """Look at everybody for up to SILENT_SECONDS; return the last beats, the ranks that made no sign, and `ended`.

        It ends early when everybody made one, when another rank has published why the job ends, or when `ended`, the
        ranks whose processes are seen to be gone, returns some.
        """
        before = self.read()
        end = time.monotonic() + SILENT_SECONDS
        silent = sorted(set(range(self._world)) - {me})
        now, gone = before, ended()
        while silent and not gone and time.monotonic() < end and self.failure() is None:
            time.sleep(INTERVAL_SECONDS / 4)
            now, gone = self.read(), ended()
            silent = [r for r in silent if r not in now or (r in before and now[r].count == before[r].count)]
        return now, silent, gone

    def _key(self, rank: int) -> str:
        return f"{self.prefix}/beat/{rank}"


def culprit(beats: dict[int, Beat], silent: Sequence[int], world: int, ended: Sequence[int] = ()) -> str:
    """Name, in one line, the rank that the others wait for.

    It is one whose process has ended; else a silent one; else the one that is furthest behind; else the only one that
    does not wait for the others.
    """
    if silent or ended:
        what, ranks = ("dead", ended) if ended else ("dead or stopped", silent)
        names = ", ".join(_lost(rank, beats.get(rank), what) for rank in ranks[:8])
        return names if len(ranks) <= 8 else f"{names} and {len(ranks) - 8} more"
    furthest_behind = min((beat.step, beat.part) for beat in beats.values())
    behind = [beat for beat in beats.values() if (beat.step, beat.part) == furthest_behind]
    if len(behind) < len(beats):
        return ", ".join(f"{beat} is behind: {_where(beat)}" for beat in behind[:8])
    working = [beat for beat in beats.values() if not beat.waiting]
    if 0 < len(working) < len(beats):
        return ", ".join(f"{beat} keeps the others waiting: {_where(beat)}" for beat in working[:8])
    place, ranks = Counter(beat.place for beat in beats.values()).most_common(1)[0]
    some = next(iter(beats.values()))
    return (
        f"no rank of {world} is behind the others: step {some.step}, phase {some.phase}, "
        f"for {_age(some):.0f} s; {ranks} of them at {place}"
    )


def _where(beat: Beat) -> str:
    return f"step {beat.step}, phase {beat.phase}, for {_age(beat):.0f} s, at {beat.place}"


def _lost(rank: int, beat: Beat | None, what: str) -> str:
    if beat is None:
        return f"rank {rank} {'ended before it gave' if what == 'dead' else 'never gave'} a sign of life"
    return f"{beat} is {what}: last seen in step {beat.step}, phase {beat.phase}, {_age(beat):.0f} s ago"


def _age(beat: Beat) -> float:
    return max(0.0, time.time() - beat.since)


def _is_collective(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").startswith("torch.distributed") and frame.f_code.co_name != "wrapper"


def place_of(frame: FrameType | None) -> tuple[str, bool]:
    """Return the innermost place of a thread outside of torch, with its collective, and whether it is in one."""
    stack = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    modules = [entry.f_globals.get("__name__", "") for entry in stack]
    waiting = any(module.startswith("torch.distributed") for module in modules[:3])
    for entry, module in zip(stack, modules, strict=True):
        if not module.startswith("torch."):
            path = "/".join(Path(entry.f_code.co_filename).parts[-2:])
            called = next((e.f_code.co_name for e in stack if _is_collective(e)), None) if waiting else None
            return f"{path}:{entry.f_lineno} in {entry.f_code.co_name}{f' ({called})' if called else ''}", waiting
    return "an unknown place", waiting
