"""The default engine: processes on this machine.

Results come back in the order of the items, whoever made them first. A worker holds one task at a time, so the memory
of the machine is `workers` times that of a task.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.engines.work import Commit, Task, TaskFunction, perform_task
from llama_foundation import errors
from llama_foundation.errors import RunError, UserError


class LocalEngine:
    """A pool of `workers` processes, started when they are needed.

    Args:
        workers: 0: one per core.
        inline: with one worker, everything runs in this process.
    """

    def __init__(self, workers: int, inline: bool = True) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._inline = inline and self.workers == 1
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

    def perform(
        self, folder: Path, function: TaskFunction, tasks: list[Task], done: Callable[[int], None]
    ) -> list[Commit]:
        """Do the tasks (see `work.Engine`)."""
        return self.map(partial(perform_task, function, folder), tasks, lambda task: task.label, lambda: done(1))

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
            items: the next one is asked for when a worker is free for it.
            name: what an item is called in an error.
            done: called in this process whenever an item is finished.

        Raises:
            UserError: raised by `function`, passed on as it is.
            RunError: `function` failed otherwise, or the process that ran it died; the item is named.
        """
        if self._inline:
            results = []
            for item in items:
                results.append(function(item))
                done()
            return results
        try:
            return self._map(function, iter(items), name, done)
        except BaseException:
            self.close()
            raise

    def _map(self, function: Callable, items: Iterator, name: Callable, done: Callable) -> list[Any]:
        results: list[Any] = []
        names: list[str] = []
        busy: dict[int, int] = {}  # worker -> index of its item

        def give(worker: int) -> bool:
            for item in items:
                if worker == len(self._processes):
                    self._start()
                self._connections[worker].send((function, item))
                busy[worker] = len(results)
                results.append(None)
                names.append(name(item))
                return True
            return False

        for worker in range(self.workers):
            if not give(worker):
                break
        while busy:
            handles = {self._connections[worker]: worker for worker in busy}
            for connection in wait(list(handles)):
                worker = handles[connection]
                index = busy.pop(worker)
                try:
                    succeeded, value = connection.recv()
                except (EOFError, OSError):
                    raise self._death(worker, names[index]) from None
                if not succeeded:
                    raise as_error(value, names[index])
                results[index] = value
                done()
                give(worker)
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
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
        connection.send(attempt(function, item))


def attempt(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """Return (True, function(item)), or (False, what `as_error` makes an error of again, in another process)."""
    try:
        return True, function(item)
    except UserError as error:
        return False, (type(error).__name__, str(error))
    except Exception as error:
        return False, ("", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def _die_with_parent() -> None:
    """Without this a worker would finish its partition after the main process was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def as_error(value: tuple[str, str], item: str) -> UserError:
    """Return the error that `attempt` caught while it worked on `item`."""
    kind, message = value
    if kind:
        return getattr(errors, kind, RunError)(message)
    return RunError(f"{item} failed: {message}")
