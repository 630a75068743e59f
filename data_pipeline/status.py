"""llama-data status output=DIR: what is done and what is missing, while a run is going on and afterwards."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from data_pipeline.chain import read_note, settings_key
from data_pipeline.engines.array import FAILED
from data_pipeline.engines.leases import SUFFIX, read_lease
from data_pipeline.split import SPLITS
from data_pipeline.workspace import SETTINGS, WORK, in_use
from llama_foundation.errors import ConfigError

_MOST_HOLDERS = 3  # named in the table; all are in the JSON


@dataclass
class StatusConfig:
    """Which run to look at."""

    output: str = MISSING  # the output directory of llama-data
    json: bool = False  # print JSON instead of a table


@dataclass
class PhaseStatus:
    """One phase of the run."""

    name: str
    folder: str  # in .work
    tasks: int
    done: int = 0
    holders: dict[str, int] = field(default_factory=dict)  # host:process -> tasks that it has leased
    failed: list[str] = field(default_factory=list)  # what went wrong, as the array engine's workers left it
    bytes: int = 0
    seconds_since_commit: float | None = None


@dataclass
class Status:
    """What an output directory says about its run."""

    finished: bool
    running: bool | None  # on the local engine or Ray; None where the file system has no locks
    phases: list[PhaseStatus]
    not_begun: list[str]  # stages of the preset, and `shards`
    work_bytes: int
    leftover_bytes: int  # of phases of other settings
    shard_bytes: int


def status(config: StatusConfig) -> int:
    """Print the state of an output directory; return the exit status."""
    output = Path(config.output)
    found = look(output)
    if config.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    console = Console()
    console.print(_table(found))
    lines = [_sentence(found, output)]
    if found.not_begun:
        lines.append(f"not begun: {', '.join(found.not_begun)}")
    lines += [f"failed: {text}" for phase in found.phases for text in phase.failed]
    disk = f"disk: {_size(found.work_bytes)} of work, {_size(found.shard_bytes)} of shards"
    if found.leftover_bytes:
        disk += f"; {_size(found.leftover_bytes)} of the work is of other settings"
    for line in [*lines, disk]:
        console.print(line, highlight=False, markup=False)
    return 0


def look(output: Path) -> Status:
    """Return the state of an output directory; nothing is written, and a run is not disturbed.

    Raises:
        ConfigError: it is not an output of llama-data.
    """
    work = output / WORK
    try:
        settings = json.loads((work / SETTINGS).read_bytes())
        settings.pop("partition_bytes", None)
        stages = list(map(str, settings["settings"]["pipeline.stages"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"output={output} holds no work of llama-data ({work / SETTINGS}: {type(error).__name__}); give the output "
            "directory of a run"
        ) from error
    current, phases, work_bytes, leftover = settings_key(settings), [], 0, 0
    for folder in sorted(each for each in work.iterdir() if each.is_dir()):
        note = read_note(folder)
        place, phase = _phase(folder, note)
        work_bytes += phase.bytes
        if note.get("settings") == current:
            phases.append((place, phase))
        else:
            leftover += phase.bytes
    phases = [phase for _, phase in sorted(phases, key=lambda each: each[0])]
    begun = {part for phase in phases for part in phase.name.partition(".")[0].split("+")}
    missing = [*(stage for stage in stages if stage not in begun), *([] if "write" in begun else ["shards"])]
    files = [path for split in SPLITS for path in (output / split).rglob("*") if path.is_file()]
    shards = sum(path.stat().st_size for path in files)
    finished = (output / "shards.json").exists()
    return Status(finished, in_use(output), phases, [] if finished else missing, work_bytes, leftover, shards)


def _phase(folder: Path, note: dict[str, Any]) -> tuple[int, PhaseStatus]:
    phase = PhaseStatus(note.get("name", folder.name), folder.name, note.get("tasks", 0))
    leased, committed, newest = [], set(), 0.0
    for entry in os.scandir(folder):
        try:
            stat = entry.stat()
        except FileNotFoundError:
            continue  # the run goes on while we look
        phase.bytes += stat.st_size if entry.is_file() else 0
        name, dot, kind = entry.name.rpartition(".")
        if not name:
            continue
        if kind == "json":
            committed.add(name)
            newest = max(newest, stat.st_mtime)
        elif dot + kind == SUFFIX:
            leased.append(name)
        elif dot + kind == FAILED:
            phase.failed += _failure(Path(entry.path))
    phase.done = len(committed)
    phase.seconds_since_commit = max(0.0, round(time.time() - newest, 1)) if newest else None
    for name in leased:
        try:
            holder, _ = read_lease(folder / f"{name}{SUFFIX}")
        except FileNotFoundError:
            continue
        if name not in committed:
            phase.holders[str(holder)] = phase.holders.get(str(holder), 0) + 1
    return note.get("place", 0), phase


def _failure(path: Path) -> list[str]:
    try:
        return [str(json.loads(path.read_bytes())["message"])]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _table(found: Status) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("phase", overflow="fold")
    for name in ("done", "of", "size", "last"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("leased by", overflow="fold")
    for phase in found.phases:
        age = "" if phase.seconds_since_commit is None else _age(phase.seconds_since_commit)
        holders = [f"{holder} ({tasks})" for holder, tasks in sorted(phase.holders.items())]
        more = [f"and {len(holders) - _MOST_HOLDERS} more"] if len(holders) > _MOST_HOLDERS else []
        shown = ", ".join(holders[:_MOST_HOLDERS] + more)
        table.add_row(phase.name, f"{phase.done:,}", f"{phase.tasks:,}", _size(phase.bytes), age, shown)
    return table


def _sentence(found: Status, output: Path) -> str:
    if found.finished:
        return f"finished: {output / 'shards.json'}"
    if found.running:
        return "running"
    if any(phase.holders for phase in found.phases):
        return "not finished; workers hold leases"
    return "not finished, and nobody is seen at work: run the same command again to go on"


def _size(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
