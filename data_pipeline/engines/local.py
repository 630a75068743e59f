"""The default engine: processes on this machine.

An engine has one verb that it must bring itself, `map`; the other, shuffle, is `map` to files grouped by bucket, a
barrier, and `map` over the buckets (`engines/work.py`). Results come back in the order of the items, whoever made
them first.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

import pyarrow as pa

from llama_foundation import errors
from llama_foundation.errors import RunError, UserError


class LocalEngine:
    """A pool of `workers` processes, started on first use; with one worker everything runs in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what they were doing is lost, what they committed is not."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        name: Callable[[Any], str] = str,
        done: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Return [function(item) for item in items], computed by the workers.

        Args:
            function: importable by name, and so are the items and results (they travel between processes).
            name: what an item is called in an error.
            done: called in this process whenever an item is finished.

        Raises:
            UserError: raised by `function`, passed on as it is.
            RunError: `function` failed otherwise, or the process that ran it died; the item is named.
        """
        todo = list(items)
        if self.workers == 1 or len(todo) < 2:
            results = []
            for item in todo:
                results.append(function(item))
                done()
            return results
        try:
            return self._map(function, todo, name, done)
        except BaseException:
            self.close()
            raise

    def _map(self, function: Callable, todo: list, name: Callable, done: Callable) -> list[Any]:
        self._start(min(self.workers, len(todo)))
        results: list[Any] = [None] * len(todo)
        busy: dict[int, int] = {}  # worker -> index of its item
        following = 0
        for worker, connection in enumerate(self._connections):
            if following < len(todo):
                connection.send((function, todo[following]))
                busy[worker] = following
                following += 1
        while busy:
            handles = {self._connections[worker]: worker for worker in busy}
            for connection in wait(list(handles)):
                worker = handles[connection]
                index = busy.pop(worker)
                try:
                    succeeded, value = connection.recv()
                except (EOFError, OSError):
                    raise self._death(worker, name(todo[index])) from None
                if not succeeded:
                    raise _error(value, name(todo[index]))
                results[index] = value
                done()
                if following < len(todo):
                    connection.send((function, todo[following]))
                    busy[worker] = following
                    following += 1
        return results

    def _start(self, wanted: int) -> None:
        context = multiprocessing.get_context("forkserver")
        while len(self._processes) < wanted:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _death(self, worker: int, item: str) -> RunError:
        process = self._processes[worker]
        process.join()
        code = process.exitcode
        if code == -signal.SIGKILL:
            cause = "was killed (signal 9; often the system ran out of memory: use fewer workers or a smaller "
            cause += "partition_bytes)"
        elif code < 0:
            cause = f"died of signal {-code}"
        else:
            cause = f"exited with status {code}"
        return RunError(f"the worker that had {item} {cause}; finished partitions are kept: run the same command again")


def _work(connection: Connection) -> None:
    """Serve one worker until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pa.set_cpu_count(1)
    while True:
        try:
            function, item = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(item))
        except UserError as error:
            answer = (False, (type(error).__name__, str(error)))
        except Exception as error:
            answer = (False, ("", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        connection.send(answer)


def _die_with_parent() -> None:
    """Without this a worker would finish its partition after the main process was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _error(value: tuple[str, str], item: str) -> UserError:
    kind, message = value
    if kind:
        return getattr(errors, kind, RunError)(message)
    return RunError(f"{item} failed: {message}")
