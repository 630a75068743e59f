"""The chain of phases that a run is: each names its folder after everything before it.

A phase is the same function over many payloads, on whatever engine runs. Local stages, global stages, tokenizer and
shards all add phases to the same chain, so a changed setting redoes what comes after it and nothing before.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from data_pipeline.engines.work import Block, Commit, Engine, Task, TaskFunction, run_phase
from data_pipeline.report import console as show
from llama_foundation.errors import RunError
from llama_foundation.files import checksum, publish_json

NOTE = ".phase"
"""What a phase's folder says about itself: name, place, number of tasks, whose settings."""

ROWS_PER_BUCKET = 1_000_000
"""A global stage holds the keys of about this many documents per worker."""


class Chain:
    """Runs phases one after the other in `work`, a folder that survives a kill."""

    def __init__(self, work: Path, engine: Engine, console: Console, seed: int, settings: Any = None) -> None:
        """Begin with nothing; `settings` (as JSON) are what `llama-data status` knows the run's phases by."""
        self.work = work
        self.engine = engine
        self.console = console
        self.seed = seed
        self.settings = settings_key(settings)
        self._fingerprint = ""
        self._phases = 0

    def phase(
        self,
        name: str,
        inputs: Any,
        function: TaskFunction,
        payloads: list[Any],
        label: Callable[[Any], str],
        before: Callable[[Path, list[Task]], None] = lambda folder, tasks: None,
    ) -> list[Commit]:
        """Do what is missing of a phase; return one commit per payload, in their order.

        Args:
            inputs: what the output depends on besides the phases before and the payloads' blocks; as JSON.
            function: called as function(folder, task) in a worker, with task.payload one of `payloads`.
            label: what a payload is called in an error.
            before: called as before(folder, tasks) before it is looked up what is missing.
        """
        self.advance(name, inputs)
        if not payloads:
            return []
        tasks = make_tasks(payloads, label)
        folder = self.folder(name)
        before(folder, tasks)
        self._announce(folder, name, len(tasks))
        with show.phase(self.console, name, len(tasks)) as done:
            return run_phase(self.engine, folder, function, tasks, done)

    def advance(self, name: str, inputs: Any) -> None:
        """Chain the fingerprint: it covers this phase's inputs and all phases before it."""
        value = json.dumps([self._fingerprint, name, inputs], sort_keys=True)
        self._fingerprint = xxhash.xxh3_128_hexdigest(value.encode())
        self._phases += 1

    def _announce(self, folder: Path, name: str, tasks: int) -> None:
        """Leave a note for `llama-data status`."""
        note = {"name": name, "place": self._phases, "tasks": tasks, "settings": self.settings}
        path = folder / NOTE
        if read_note(folder) != note:
            try:
                publish_json(path, note)
            except OSError as error:
                raise RunError(f"{folder} cannot be written: {error.strerror}") from error

    def folder(self, name: str) -> Path:
        """Return where the phase that was begun last keeps its files."""
        return self.work / f"{name}-{self._fingerprint[:16]}"


def read_note(folder: Path) -> dict[str, Any]:
    """Return what a phase's folder says about itself; nothing where that cannot be read."""
    try:
        note = json.loads((folder / NOTE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    kinds = {"name": str, "place": int, "tasks": int, "settings": str}
    return note if isinstance(note, dict) and {key: type(value) for key, value in note.items()} == kinds else {}


def settings_key(settings: Any) -> str:
    """Return a short name for settings, given as JSON."""
    return checksum(json.dumps(settings, sort_keys=True).encode())[:16]


def make_tasks(payloads: list[Any], label: Callable[[Any], str]) -> list[Task]:
    """Return a task per payload, named by its place."""
    return [Task(f"{number:06d}", label(payload), payload) for number, payload in enumerate(payloads)]


def all_blocks(commits: list[Commit]) -> list[Block]:
    """Return the blocks of the commits, one behind the other."""
    return [block for commit in commits for block in commit.blocks]


def bucket_count(blocks: list[Block]) -> int:
    """Return how many buckets the keys of the documents in `blocks` are spread over."""
    return 1 + sum(block.rows for block in blocks) // ROWS_PER_BUCKET


def block_label(payload: tuple) -> str:
    """Return what an error calls a payload that begins with a block."""
    return payload[0].path
