"""Work that survives a kill: phases of tasks, each committed whole.

`DIR/.work/<phase>-<fingerprint>/` holds, for every finished task, its data files and `<task>.json` with counts and
checksums, written last. The fingerprint covers everything that the phase's output depends on, so a folder is either
right or not looked at, and running again does only the tasks without a commit.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from data_pipeline.engines.memory import keep_freed_memory
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import DataError, RunError
from llama_foundation.files import checksum, publish, publish_json


@dataclass(frozen=True)
class Block:
    """One Arrow IPC stream inside a file."""

    path: str
    offset: int
    length: int
    rows: int
    checksum: str
    group: str = ""  # which bucket, or which split and source, the rows belong to


@dataclass(frozen=True)
class Task:
    """A piece of a phase. `name` is its file name in the phase's folder, `label` what an error calls it."""

    name: str
    label: str
    payload: Any


@dataclass
class Commit:
    """What a finished task leaves behind."""

    blocks: list[Block] = field(default_factory=list)
    statistics: list[StageStatistics] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


TaskFunction = Callable[[Path, Task], Commit]
"""Called as function(folder, task) in a worker; it writes files named after the task into the folder. The same task
gives the same bytes, whoever does it and however often."""


class Engine(Protocol):
    """Who does the tasks. An engine is a context; leaving it ends its workers."""

    def perform(
        self, folder: Path, function: TaskFunction, tasks: list[Task], done: Callable[[int], None]
    ) -> list[Commit]:
        """Have every task done once, through `perform_task`, here or elsewhere; return their commits in order.

        Args:
            done: called in this process with the number of tasks newly known to be finished.

        Raises:
            UserError: raised by `function`, passed on as it is.
            RunError: `function` failed otherwise, or the worker that ran it died; the task is named.
        """

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *_: object) -> None: ...


def write_blocks(path: Path, tables: Iterable[tuple[str, pa.Table]], compression: str | None = "lz4") -> list[Block]:
    """Write (group, table) pairs one behind the other into a file that appears whole.

    lz4 makes English text about half its size; zstd would make it a third, and takes 1.4 times as long to write and 2.5
    times as long to read.
    """
    options = pa.ipc.IpcWriteOptions(compression=compression)
    blocks = []
    with publish(path) as file:
        for group, table in tables:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
                writer.write_table(table)
            data = memoryview(sink.getvalue())
            blocks.append(Block(str(path), file.tell(), len(data), table.num_rows, checksum(data), group))
            file.write(data)
    return blocks


def read_block(block: Block) -> pa.Table:
    """Read a block into memory.

    Raises:
        DataError: it is missing or not what was committed.
    """
    try:
        with open(block.path, "rb") as file:
            if block.offset + block.length > os.fstat(file.fileno()).st_size:  # before there is room made for it
                raise _damaged(block)
            file.seek(block.offset)
            data = file.read(block.length)
    except OSError as error:
        raise _damaged(block) from error
    if len(data) != block.length or checksum(data) != block.checksum:
        raise _damaged(block)
    try:
        return pa.ipc.open_stream(data).read_all()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(block) from error


def group_blocks(commits: Iterable[Commit]) -> dict[str, list[Block]]:
    """Return group -> its blocks from the commits of all mappers: the barrier in the middle of a shuffle."""
    groups: dict[str, list[Block]] = {}
    for commit in commits:
        for block in commit.blocks:
            groups.setdefault(block.group, []).append(block)
    return groups


def run_phase(
    engine: Engine,
    folder: Path,
    function: TaskFunction,
    tasks: list[Task],
    done: Callable[[int], None] = lambda count: None,
) -> list[Commit]:
    """Do the tasks that have no commit in `folder` yet; return the commits of all, in the order of `tasks`.

    Args:
        done: called with the number of tasks that are newly known to be finished.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror}") from error
    commits = {task.name: load_commit(folder, task) for task in tasks}
    pending = [task for task in tasks if commits[task.name] is None]
    done(len(tasks) - len(pending))
    results = engine.perform(folder, function, pending, done)
    commits.update(zip((task.name for task in pending), results, strict=True))
    return [commits[task.name] for task in tasks]


def total_statistics(commits: list[Commit], stages: list[str]) -> list[StageStatistics]:
    """Return the merged statistics of each stage that the commits carry, in the order of `stages`."""
    totals = {stage: StageStatistics(stage) for stage in stages}
    for commit in commits:
        for each in commit.statistics:
            totals[each.stage].merge(each)
    return list(totals.values())


def perform_task(function: TaskFunction, folder: Path, task: Task) -> Commit:
    """Do one task and commit it: what an engine runs in its workers.

    Raises:
        RunError: the disk is full, or cannot be written or read.
    """
    keep_freed_memory()
    started = time.process_time_ns()
    try:
        commit = function(folder, task)
        if commit.statistics:
            commit.statistics[-1].cpu_milliseconds += (time.process_time_ns() - started) // 1_000_000 - sum(
                each.cpu_milliseconds for each in commit.statistics[:-1]
            )
        value = asdict(commit)
        for block in value["blocks"]:
            block["path"] = Path(block["path"]).name  # the output directory may be moved between two runs
        publish_json(commit_path(folder, task), value)
    except OSError as error:
        raise RunError(
            f"{task.label}: {error}; finished partitions are kept in {folder.parent}: mend this and run the same "
            "command again"
        ) from error
    return commit


def load_commit(folder: Path, task: Task) -> Commit | None:
    """Return the commit of a task whose files are all there with their sizes, else None."""
    try:
        value = json.loads(commit_path(folder, task).read_bytes())
        commit = Commit(
            committed_blocks(folder, value),
            [StageStatistics.from_json(each) for each in value["statistics"]],
            dict(value["notes"]),
        )
        whole = all(Path(each.path).stat().st_size >= each.offset + each.length for each in commit.blocks)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return commit if whole else None


def committed_blocks(folder: Path, value: Any) -> list[Block]:
    """Return the blocks that a commit lists, all of them in `folder`.

    Raises:
        KeyError, TypeError, ValueError: they are something else, or elsewhere.
    """
    blocks = [Block(**{**each, "path": str(folder / each["path"])}) for each in value["blocks"]]
    paths = {block.path for block in blocks}  # a shuffle's blocks are many, in one file
    if any(Path(path).parent != folder or Path(path).is_symlink() for path in paths):
        raise ValueError(f"a block is not in {folder}")
    for block in blocks:
        numbers = (block.offset, block.length, block.rows)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError(f"{block} is no block of {folder}")
        if not isinstance(block.group, str):
            raise TypeError(f"{block.group!r} is no group")
    return blocks


def commit_path(folder: Path, task: Task) -> Path:
    """Return where the commit of a task is."""
    return folder / f"{task.name}.json"


def _damaged(block: Block) -> DataError:
    return DataError(
        f"{block.path} is missing or damaged (bytes {block.offset} to {block.offset + block.length}); "
        "delete it and run the same command again: only what needs it is redone"
    )
