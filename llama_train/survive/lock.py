"""One run in one directory."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from llama_foundation.errors import RunError

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLock:
    """Holds `run_directory/run.lock` for as long as it is open; rank 0 opens it before it writes anything.

    The kernel lets go of the lock when the process ends, however it ends, so a killed run leaves nothing to clean up.
    Where the file system has no locks, that is said once on standard error and the run goes on unprotected.

    Raises:
        RunError: another process holds it; names that process, its host and since when it runs.
    """

    def __init__(self, run_directory: Path) -> None:
        self._path = run_directory / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise RunError(
                f"{self._path.parent} is in use by {_describe(holder)}; wait for it, stop it (kill -TERM), "
                "or give this run another name="
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
            print(
                f"warning: {self._path}: this file system has no locks ({error.strerror}); "
                "nothing keeps a second run out of this directory",
                file=sys.stderr,
            )
            return self
        self._descriptor = descriptor
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _describe(holder: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        values = json.loads(holder)
        return f"process {values['pid']} on {values['host']}, which started at {values['started']}"
    return "another process"
