"""One output directory: which settings its work is for, and who may work in it.

`.work/settings.json` says what the folder was begun with. `.work/lock` is held exclusively by a run on the local
engine or on Ray, and shared by the workers of the array engine; the lock goes with the process, however it ends.
"""

import contextlib
import errno
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from data_pipeline import write
from data_pipeline.config import RUNTIME_SETTINGS, DataPipelineConfig, EngineName, flatten
from data_pipeline.read import plan
from data_pipeline.read.rows import NAME as READ
from data_pipeline.read.rows import VERSION as READ_VERSION
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.stages import STAGES
from llama_foundation.errors import ConfigError, RunError
from llama_foundation.files import publish_json

WORK = ".work"
SETTINGS = "settings.json"
LOCK = "lock"
FINISH = "finish"

_RUNTIME_PREFIXES = tuple(f"{name}." for name in RUNTIME_SETTINGS)
_PARTS = ("settings", "versions", "inputs")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PATIENCE_SECONDS = 15.0  # for another worker that is taking stock; much more than it needs


def describe(config: DataPipelineConfig, files: list[plan.InputFile]) -> dict[str, Any]:
    """Return what the shards depend on, as it is kept in settings.json and stats.json."""
    settings = {key: value for key, value in flatten(config).items() if not f"{key}.".startswith(_RUNTIME_PREFIXES)}
    versions = {name: STAGES[name].version for name in config.pipeline.stages} | {READ: READ_VERSION}
    versions[write.NAME] = write.VERSION
    return {"settings": settings, "versions": versions, "inputs": {file.path: asdict(file) for file in files}}


def finished(output: Path, described: dict[str, Any]) -> list[StageStatistics] | None:
    """Return the statistics of a finished run with the same settings; None where there is none. Writes nothing.

    Raises:
        ConfigError: the directory holds something else.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file; give a directory")
    if not (output / "shards.json").exists():
        if output.exists() and any(output.iterdir()) and not (output / WORK).exists():
            raise ConfigError(f"output={output} is not empty and was not made by llama-data; give another directory")
        return None
    try:
        before = json.loads((output / "stats.json").read_bytes())
        if not _differences(before, described):
            return [StageStatistics.from_json(each) for each in before["stages"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # `claim` says so
    return None


@contextlib.contextmanager
def claim(
    output: Path, config: DataPipelineConfig, described: dict[str, Any], console: Console
) -> Iterator[list[StageStatistics] | None]:
    """Take the output for a run with these settings; yields the statistics if another worker finished it meanwhile.

    Raises:
        ConfigError: the work in there was begun with other settings, and `overwrite` is not set.
        RunError: the directory cannot be written, or is in use.
    """
    together = config.engine.name is EngineName.array
    try:
        (output / WORK).mkdir(parents=True, exist_ok=True)
        file = open(output / WORK / LOCK, "a+")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"output={output} cannot be written: {error.strerror}") from error
    with file:
        try:
            alone = _lock(file, output, together)
            statistics = _prepare(output, config, described, alone)
            if together and alone:
                _share(file, output)
                statistics = _prepare(output, config, described, alone=False)  # others were let in meanwhile
        except _NoLocksError:
            console.print(f"{file.name}: this file system has no locks; see to it that no other run uses the output")
            statistics = _prepare(output, config, described, alone=not together)
        yield statistics


def in_use(output: Path) -> bool | None:
    """Return whether a run on the local engine or on Ray holds the output; None where that cannot be known."""
    try:
        with open(output / WORK / LOCK) as file:
            return not _try(file, fcntl.LOCK_SH)
    except (OSError, _NoLocksError):
        return None


class _NoLocksError(Exception):
    """The file system does not know flock."""


def _lock(file: TextIO, output: Path, together: bool) -> bool:
    """Return whether nobody else works in the output; without `together` that is an error."""
    deadline = time.monotonic() + (_PATIENCE_SECONDS if together else 1.0)
    while True:
        if _try(file, fcntl.LOCK_EX):
            return True
        if together and _try(file, fcntl.LOCK_SH):
            return False
        if time.monotonic() > deadline:
            raise _in_use(output)
        time.sleep(0.1)


def _share(file: TextIO, output: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _try(file, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            raise _in_use(output)
        time.sleep(0.1)


def _try(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _NoLocksError from error
        return False
    return True


def _in_use(output: Path) -> RunError:
    return RunError(f"output={output} is in use by another llama-data; wait for it, or give another")


def _prepare(
    output: Path, config: DataPipelineConfig, described: dict[str, Any], alone: bool
) -> list[StageStatistics] | None:
    """Compare the settings with those of the work folder, and clear what a changed or killed run left."""
    work = output / WORK
    now = {**described, "partition_bytes": config.partition_bytes}
    before = _read(work / SETTINGS) or _read(output / "stats.json")
    differences = [] if before is None else _differences(before, described)
    if before is None and (output / "shards.json").exists():
        differences = ["stats.json cannot be read"]
    if alone and differences and not config.overwrite:
        state = "finished shards that were made" if (output / "shards.json").exists() else "work that was begun"
        raise ConfigError(
            f"output={output} holds {state} differently: {_shown(differences)}. Give another output, or overwrite=true "
            "to replace them: work that the change does not touch is used again"
        )
    if not alone and before is not None:
        if before.get("partition_bytes") != config.partition_bytes:
            cut = before.get("partition_bytes")
            differences.append(f"partition_bytes was {cut}, is {config.partition_bytes}")
        if differences:
            raise ConfigError(
                f"other workers are at work in output={output} with other settings: {_shown(differences)}. Give this "
                "one the same, or end them first"
            )
    if not differences and (statistics := finished(output, described)) is not None:
        return statistics
    if alone:
        (output / "shards.json").unlink(missing_ok=True)
        for folder in work.glob(f"{FINISH}-*"):
            shutil.rmtree(folder)
        _sweep(work)
    if before != now and (alone or before is None):
        publish_json(work / SETTINGS, now)
    return None


def _sweep(work: Path) -> None:
    """Remove what processes that were killed had not finished."""
    for left in [*work.glob(".*.partial"), *work.glob("*/.*.partial"), *work.glob("write-*/*-*")]:
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name.endswith(".partial"):
            left.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and all(isinstance(value.get(part), dict) for part in _PARTS) else None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{key} was {before[part].get(key, 'not there')}, is {now[part].get(key, 'not there')}"
        for part in _PARTS
        for key in sorted(before[part].keys() | now[part].keys())
        if before[part].get(key) != now[part].get(key)
    ]


def _shown(differences: list[str]) -> str:
    return "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
