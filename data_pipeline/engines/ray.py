"""The same tasks on a Ray cluster.

All machines see input, output and tokenizer under the same paths, and have the same version of this package: tasks
travel through Ray, data and commits through the shared directory. A task on a machine that dies is done on another.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.engines.local import as_error, attempt
from data_pipeline.engines.work import Commit, Task, TaskFunction, load_commit, perform_task
from llama_foundation.errors import ConfigError, RunError

LOOPBACK = "127.0.0.1"

_TRIES = 5  # of a task whose worker or machine dies
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # of a cluster that is started here: only tasks and answers pass through it


class RayEngine:
    """Connects to a cluster, or starts one of this machine alone.

    Args:
        workers: tasks at a time; 0: as many as the cluster has CPUs for.
        address: HOST:PORT of a running cluster, auto for the one this machine belongs to; empty: start one.
        cpus_per_task: what a task reserves.
        tasks_per_process: after so many, a worker process is replaced, and its memory given back.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at `address`.
    """

    def __init__(self, workers: int, address: str, cpus_per_task: float, tasks_per_process: int) -> None:
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError as error:
            raise ConfigError("engine=ray needs Ray: pip install 'llama-train[ray]'; or use engine=local") from error
        self._ray = ray
        own: dict[str, Any] = {"_node_ip_address": LOOPBACK, "object_store_memory": OBJECT_STORE_BYTES}
        own |= {"num_cpus": workers or len(os.sched_getaffinity(0)), "include_dashboard": False}
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(**({"address": address} if address else {"address": "local", **own}), **quiet)
        except Exception as error:
            raise ConfigError(
                f"engine.address={address}: no Ray cluster can be used there ({error}); start one with `ray start "
                "--head`, or leave engine.address out"
            ) from error
        self._workers = workers
        options = {"num_cpus": cpus_per_task, "max_calls": tasks_per_process, "max_retries": _TRIES}
        self._remote = ray.remote(**options)(_attempt)
        self._cpus_per_task = cpus_per_task

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def perform(
        self, folder: Path, function: TaskFunction, tasks: list[Task], done: Callable[[int], None]
    ) -> list[Commit]:
        """Do the tasks (see `work.Engine`)."""
        todo = iter(tasks)
        running: dict[Any, Task] = {}
        try:
            while True:
                for task in itertools.islice(todo, max(0, self._at_a_time() - len(running))):
                    running[self._remote.remote(function, folder, task, os.getcwd())] = task
                if not running:
                    break
                (reference,), _ = self._ray.wait(list(running), num_returns=1)
                self._receive(reference, running.pop(reference))
                done(1)
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)
        commits = [load_commit(folder, task) for task in tasks]
        for task, commit in zip(tasks, commits, strict=True):
            if commit is None:
                raise RunError(
                    f"{task.label} was done, but {folder} does not show it on this machine: engine=ray needs an output "
                    "directory that all machines of the cluster share under the same path"
                )
        return [commit for commit in commits if commit is not None]

    def _at_a_time(self) -> int:
        """A few more than fit keep every machine busy; the others stay here, where they take no memory of Ray."""
        fitting = int(self._ray.cluster_resources().get("CPU", 1) / self._cpus_per_task)
        return self._workers or 2 * max(1, fitting)

    def _receive(self, reference: Any, task: Task) -> None:
        try:
            succeeded, value = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise RunError(
                f"{task.label}: a machine of the cluster could not run it; all of them need this version of "
                f"llama-train: {error}"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise RunError(
                f"{task.label}: its worker died {_TRIES + 1} times ({type(error).__name__}: {error}); finished "
                "partitions are kept: use a smaller partition_bytes or a larger engine.cpus_per_task, and run the same "
                "command again"
            ) from error
        if not succeeded:
            raise as_error(value, task.label)


def _attempt(function: TaskFunction, folder: Path, task: Task, directory: str) -> tuple[bool, Any]:
    """Do one task in a worker of Ray, in the driver's working directory, which relative input paths start from."""
    with contextlib.chdir(directory):
        succeeded, value = attempt(lambda each: perform_task(function, folder, each), task)
    return succeeded, None if succeeded else value
