"""Leases in a shared folder: who is doing what, and whether it is still alive.

A lease is a file that appears whole by `link`, which succeeds for one process only, on NFS too. Its holder touches it;
one that was not touched for `seconds` may be taken over. All times are those that the file server gives to files, so
the clocks of the machines do not matter. Two holders of one lease are possible (one stopped and came back), and
harmless: tasks give the same bytes, and a commit appears whole.
"""

import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

BEATS = 4
"""Touches of a lease within the time after which it is stale."""

SUFFIX = ".lease"


@dataclass(frozen=True)
class Holder:
    """A process somewhere."""

    host: str
    process: int

    def __str__(self) -> str:
        return f"{self.host}:{self.process}"

    def is_dead(self) -> bool:
        """Whether it certainly is: only its own machine can know."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


class Leases:
    """The leases of this process; a thread keeps them alive until `close`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.holder = Holder(socket.gethostname(), os.getpid())
        self._token = f"{self.holder.process}-{os.urandom(4).hex()}"
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def acquire(self, path: Path) -> bool:
        """Return whether the lease at `path` is ours now."""
        for _ in range(2):
            if self._link(path):
                with self._lock:
                    self._held.add(path)
                return True
            if not self._is_stale(path):
                return False
            self._remove(path)
        return False

    def release(self, path: Path) -> None:
        """Give a lease back."""
        with self._lock:
            self._held.discard(path)
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give all leases back."""
        self._closed.set()
        self._thread.join()
        for path in list(self._held):
            self.release(path)

    def _link(self, path: Path) -> bool:
        own = path.with_name(f".{path.name}.{self._token}.partial")
        own.write_text(json.dumps(vars(self.holder)))
        try:
            os.link(own, path)
        except FileExistsError:
            return False
        finally:
            own.unlink(missing_ok=True)
        return True

    def _is_stale(self, path: Path) -> bool:
        try:
            holder, touched = read_lease(path)
        except FileNotFoundError:
            return True  # given back just now
        return (holder is not None and holder.is_dead()) or self._now(path.parent) - touched > self.seconds

    def _remove(self, path: Path) -> None:
        old = path.with_name(f".{path.name}.{self._token}.old.partial")
        try:
            os.rename(path, old)  # one of several that find it stale succeeds
            old.unlink()
        except FileNotFoundError:
            pass

    def _now(self, folder: Path) -> float:
        clock = folder / f".clock.{self._token}.partial"
        clock.write_bytes(b"")
        now = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
        return now

    def _beat(self) -> None:
        while not self._closed.wait(self.seconds / BEATS):
            with self._lock:
                held = list(self._held)
            for path in held:
                try:
                    os.utime(path)
                except OSError:
                    continue  # taken over, or the server is away: what matters is the commit


def read_lease(path: Path) -> tuple[Holder | None, float]:
    """Return who holds a lease, None where it cannot be read, and when it was touched last.

    Raises:
        FileNotFoundError: nobody does.
    """
    with open(path) as file:  # opening asks the NFS server, which a stat need not
        touched = os.fstat(file.fileno()).st_mtime
        try:
            holder = Holder(**json.loads(file.read()))
        except (ValueError, TypeError, RecursionError):
            return None, touched
        plain = type(holder.host) is str and type(holder.process) is int and 0 < holder.process < 2**31
        return (holder if plain else None), touched
