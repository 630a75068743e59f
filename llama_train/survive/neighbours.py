"""Ranks on this machine, whose processes can be seen to end: no waiting, and no verdict by silence.

A rank that is killed says nothing more, and from another machine that looks like one that is only slow. On the same
machine the operating system knows. So each rank looks at its neighbours twice a second and tells everybody, which is
all there is under NCCL, whose collectives do not notice a peer that is gone.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


class Neighbours:
    """The ranks whose processes this one can see.

    Nothing grows with the number of machines: ranks meet under a key of their machine. Where the system has no /proc
    nobody has neighbours.

    Args:
        store: a `torch.distributed.Store` that all ranks share.
        prefix: of this attempt's keys.
        rank: this one.
    """

    def __init__(self, store: Any, prefix: str, rank: int) -> None:
        self._store, self._prefix, self._rank = store, prefix, rank
        self._started: dict[int, tuple[int, str]] = {}  # rank -> its process and when that began
        self._known = 0
        self._lock = threading.Lock()
        self._machine = _machine()
        if self._machine is not None:
            pid = os.getpid()
            place = store.add(self._key("count"), 1)
            store.set(self._key(str(place)), json.dumps([rank, pid, _began(pid)]))

    def ended(self) -> list[int]:
        """Return the ranks of this machine whose processes have ended without `leave`."""
        if self._machine is None:
            return []
        self._meet()
        gone = [rank for rank, (pid, began) in self._started.items() if _began(pid) != began]
        return sorted(rank for rank in gone if not self._store.check([self._left(rank)]))

    def leave(self) -> None:
        """This rank has done its part: that its process ends is no failure."""
        self._store.set(self._left(self._rank), "1")

    def _meet(self) -> None:
        """Learn of neighbours that have come since."""
        with self._lock:
            count = self._store.add(self._key("count"), 0)
            while self._known < count and self._store.check([self._key(str(self._known + 1))]):
                self._known += 1
                rank, pid, began = json.loads(self._store.get(self._key(str(self._known))))
                if rank != self._rank:
                    self._started = {**self._started, rank: (pid, began)}

    def _key(self, what: str) -> str:
        return f"{self._prefix}/machine/{self._machine}/{what}"

    def _left(self, rank: int) -> str:
        return f"{self._prefix}/left/{rank}"


def _machine() -> str | None:
    """Name what ranks must share to see each other's processes: a kernel that runs, and a space of process ids."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """Return when process `pid` began, in ticks; None if there is none, or only what its parent has not yet read.

    A process id is given again in time; together with its beginning it is never the same.
    """
    try:
        after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # proc(5): from field 3 on
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]
