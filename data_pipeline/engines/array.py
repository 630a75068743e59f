"""Independent workers that share an output directory: SLURM array tasks, or processes on several machines.

Every worker runs the same command and walks the same phases. In each it leases tasks that have no commit, does them in
processes of its own, and waits until the others have committed theirs. Any of them may start late or die: what it held
is taken over. A task that fails leaves a note, so that the others stop with the same error; a new worker tries again.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data_pipeline.engines.leases import SUFFIX, Leases
from data_pipeline.engines.local import LocalEngine, as_error, attempt
from data_pipeline.engines.work import Commit, Task, TaskFunction, load_commit, perform_task
from llama_foundation.errors import RunError
from llama_foundation.files import publish_json

FAILED = ".failed"

_POLL_SECONDS = (0.05, 2.0)  # between two looks at the folder, growing while nothing happens


class ArrayEngine:
    """One worker of several.

    Args:
        workers: processes of this worker; 0: one per core.
        lease_seconds: without a sign of life for so long, a worker's tasks are taken over.
    """

    def __init__(self, workers: int, lease_seconds: float) -> None:
        self._pool = LocalEngine(workers, inline=False)  # this process stays free to keep the leases alive
        self._leases = Leases(lease_seconds)
        self._look_again = 0.0  # when to look for failures of others: a large folder takes a while to list

    def __enter__(self) -> "ArrayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._leases.close()

    def perform(
        self, folder: Path, function: TaskFunction, tasks: list[Task], done: Callable[[int], None]
    ) -> list[Commit]:
        """Do the tasks together with whoever else is at work in `folder` (see `work.Engine`)."""
        known = set(_failures(folder))  # of earlier attempts: they are made again
        commits: dict[str, Commit] = {}
        waiting = {task.name: task for task in tasks}
        pause, most = _POLL_SECONDS
        while True:
            found = self._collect(folder, waiting, commits)
            done(found)
            if not waiting:
                return [commits[task.name] for task in tasks]
            _stop_if_failed(folder, known)
            worked = self._work(folder, function, waiting, known)
            pause = _POLL_SECONDS[0] if found or worked else min(2 * pause, most)
            if not worked:
                time.sleep(pause)

    def _work(self, folder: Path, function: TaskFunction, waiting: dict[str, Task], known: set[str]) -> int:
        """Do what nobody else does; return how many tasks that were."""
        order = list(waiting.values())
        start = random.randrange(len(order))  # workers that begin together do not compete for the same task
        held: list[Task] = []

        def claimed() -> Iterator[Task]:
            for task in order[start:] + order[:start]:
                if (folder / f"{task.name}.json").exists() and load_commit(folder, task):
                    continue
                try:
                    mine = self._leases.acquire(_lease(folder, task))
                except OSError as error:
                    raise RunError(f"{folder} cannot be written: {error.strerror}") from error
                if not mine:
                    continue
                if load_commit(folder, task):  # its last holder finished it just now
                    self._leases.release(_lease(folder, task))
                    continue
                held.append(task)
                yield task
                if time.monotonic() > self._look_again:
                    _stop_if_failed(folder, known)
                    self._look_again = time.monotonic() + _POLL_SECONDS[1]

        function = partial(_attempt, function, folder)
        try:
            self._pool.map(function, claimed(), lambda task: task.label)
        finally:
            for task in held:
                self._leases.release(_lease(folder, task))
        return len(held)

    def _collect(self, folder: Path, waiting: dict[str, Task], commits: dict[str, Commit]) -> int:
        """Move the tasks that somebody has committed out of `waiting`; return how many."""
        names = {entry.name.removesuffix(".json") for entry in os.scandir(folder)} & waiting.keys()
        found = 0
        for name in names:
            if (commit := load_commit(folder, waiting[name])) is not None:
                commits[name] = commit
                del waiting[name]
                found += 1
        return found


def _attempt(function: TaskFunction, folder: Path, task: Task) -> None:
    """Do one task in a process of the pool; a failure is told to the other workers too."""
    (folder / f"{task.name}{FAILED}").unlink(missing_ok=True)
    succeeded, value = attempt(partial(perform_task, function, folder), task)
    _lease(folder, task).unlink(missing_ok=True)
    if not succeeded:
        kind, message = value
        note = {"attempt": os.urandom(8).hex(), "kind": kind, "message": message, "label": task.label}
        with contextlib.suppress(OSError):  # where the disk is full, the others will find out for themselves
            publish_json(folder / f"{task.name}{FAILED}", note)
        raise as_error(value, task.label)


def _lease(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}{SUFFIX}"


def _failures(folder: Path) -> dict[str, dict[str, str]]:
    """Return attempt -> what it left."""
    notes = {}
    for path in sorted(folder.glob(f"*{FAILED}")):
        try:
            note = json.loads(path.read_bytes())
            notes[str(note["attempt"])] = {key: str(note[key]) for key in ("kind", "message", "label")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # tried again just now
    return notes


def _stop_if_failed(folder: Path, known: set[str]) -> None:
    for name, note in _failures(folder).items():
        if name not in known:
            raise as_error((note["kind"], note["message"]), note["label"])
