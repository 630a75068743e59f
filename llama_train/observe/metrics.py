"""metrics.jsonl: what a run did, one JSON object per line, only ever appended to.

Every line has a `kind`: `step` (a finished optimizer step), `validation` (a loss on held-out documents), `statistics`
(of every parameter and layer, on request), `begin` and `end` (of a process) or `event` (something a reader of the
curves should know). A line counts once its newline is written: what a killed process left unfinished is cut off when
the file is opened again. A resumed run writes on behind what is there, under the next attempt number, and `history`
reads back what happened to the weights that exist.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llama_foundation.errors import DataError, RunError

_TAIL_BYTES = 1 << 20
"""How far back the end of a metrics file is searched for its newest attempt. Lines are well below a thousandth of it,
except for statistics: the longest, those of Llama 3.1 405B, take 30 %."""

Numbers = dict[str, float | None]
"""Numbers by name; None where one is not finite."""


@dataclass(slots=True)
class StepRecord:
    """One finished optimizer step. Times are in seconds; a token is one that counts in the loss."""

    step: int  # finished optimizer steps, this one included: the first step is 1
    attempt: int  # which process of the run did it, from 1
    tokens: int  # seen since the first step, this one included
    batch_tokens: int  # of this step, over all ranks
    loss: float
    lr: float
    grad_norm: float  # before clipping
    seconds: float  # from the end of the step before to the end of this one
    tokens_per_second: float
    tokens_per_second_per_device: float
    data_seconds: float  # of `seconds`: waiting for the batch
    compute_seconds: float  # of `seconds`: forward, backward, update
    checkpoint_seconds: float  # of `seconds`: the loop standing still for a checkpoint
    memory_bytes: int  # peak device memory on CUDA, peak resident memory elsewhere; of this rank
    mfu: float | None = None  # model FLOPs utilization, a fraction; None where the device's peak is not known
    mfu_formula: str | None = None  # which FLOPs were counted
    validation_loss: float | None = None  # on held-out documents, after this step
    pipeline_bubble: float | None = None  # share of the passes' time that pipeline ranks computed nothing
    ended_at: float | None = None  # seconds since the epoch
    skipped: bool | None = None  # True: the update was refused, and the weights are those of the step before


@dataclass(slots=True)
class Event:
    """Something that happened after `step` finished steps."""

    step: int
    attempt: int
    message: str
    values: dict[str, float | None] | None = None  # numbers that it comes with; None: one that was not finite


@dataclass(slots=True)
class Validation:
    """The loss on held-out documents after `step` finished steps."""

    step: int
    attempt: int
    validation_loss: float | None  # None: it was not finite


@dataclass(slots=True)
class Statistics:
    """How large weights, gradients and layer outputs were in `step`; see `statistics.LayerStatistics`."""

    step: int  # finished with this one: 1 is the first
    attempt: int
    parameters: dict[str, Numbers]  # by canonical name: weights_rms, weights_max, gradients_rms, ...
    layers: list[Numbers]  # outputs_rms, outputs_max, outputs_not_finite


@dataclass(slots=True)
class Beginning:
    """A process of the run reached its loop, after `step` finished steps."""

    step: int
    attempt: int
    started_at: float  # the process, in seconds since the epoch
    seconds: dict[str, float]  # from there to the loop, by what they were spent on


@dataclass(slots=True)
class Ending:
    """A process of the run ended, also with an error; one that was killed leaves none."""

    step: int
    attempt: int
    ended_at: float  # seconds since the epoch
    seconds: float  # since the last step's record, or since the loop began
    checkpoint_seconds: float  # of those
    failed: bool
    goodput: float | None = None  # of the run until here; see `ledger`
    ledger: dict[str, float] | None = None  # seconds of the run until here, by part


_TYPES = {"dict": (dict,), "list": (list,), "str": (str,), "bool": (bool,), "float": (float, int), "int": (int,)}
"""What a field may hold, by which of these words comes first in its annotation."""

_LARGEST = 1e300

Record = StepRecord | Event | Validation | Statistics | Beginning | Ending


class MetricsFile:
    """A metrics file open for appending. `attempt` is the number that belongs into the records written through it.

    Raises:
        RunError: the file cannot be opened or a line cannot be written (disk full, no permission).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "r+b" if path.exists() else "x+b", buffering=0)  # noqa: SIM115
            self._size = _complete_bytes(self._file)
            self._file.truncate(self._size)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; free or mend the disk and resume") from error
        self.attempt = next_attempt(path)

    def append(self, record: Record) -> None:
        """Write one line, whole or not at all."""
        values = _finite(asdict(record))
        line = json.dumps({"kind": _KIND_OF[type(record)], **values}, ensure_ascii=False, allow_nan=False)
        data = line.encode("utf-8") + b"\n"
        try:
            self._file.seek(self._size)
            if self._file.write(data) != len(data):
                raise OSError(28, "no space left on device")
        except OSError as error:
            self._file.truncate(self._size)
            raise RunError(
                f"{self.path}: cannot be written: {error.strerror}; free space and resume from the last checkpoint"
            ) from error
        self._size += len(data)

    def close(self) -> None:
        """Flush to disk and close."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_KIND_OF: dict[type, str] = {
    StepRecord: "step",
    Event: "event",
    Validation: "validation",
    Statistics: "statistics",
    Beginning: "begin",
    Ending: "end",
}
_CLASS_OF = {kind: cls for cls, kind in _KIND_OF.items()}


def next_attempt(path: Path) -> int:
    """Return 1 + the highest attempt number found in the metrics file, or 1 where there is none."""
    if not path.exists():
        return 1
    with open(path, "rb") as file:
        end = _complete_bytes(file)
        start = max(0, end - _TAIL_BYTES)
        file.seek(start)
        tail = file.read(end - start)
    highest = 0
    for line in tail.splitlines():
        try:
            highest = max(highest, int(json.loads(line)["attempt"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # a line cut by where the tail begins; a damaged one is refused by `read`
    return highest + 1


def read(path: Path) -> Iterator[Record]:
    """Yield every complete line of a metrics file, all attempts, in the order written.

    Raises:
        DataError: a complete line is not a record; names file and line.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such metrics file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                record = _CLASS_OF[values.pop("kind")](**values)
                _check(record)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{path}: line {number} is damaged; delete that line to use the rest") from error
            yield record


def _check(record: Record) -> None:
    """Check the types of a record's values: what was written by something else must not be added up.

    Raises:
        TypeError: one is of another type, or so large that it is no measurement.
    """
    for each in fields(record):
        value = getattr(record, each.name)
        if value is None and ("None" in str(each.type) or each.name in ("loss", "grad_norm")):
            continue  # not known, or not finite
        annotation = str(each.type)
        kind = min((kind for kind in _TYPES if kind in annotation), key=annotation.find)
        added_up = list(value.values()) if kind == "dict" and each.name in ("seconds", "ledger") else []
        if type(value) not in _TYPES[kind] or not set(map(type, added_up)) <= {int, float}:
            raise TypeError(each.name)
        if any(type(number) in (int, float) and not abs(number) < _LARGEST for number in [value, *added_up]):
            raise TypeError(each.name)


def superseding(records: Iterable[Record]) -> tuple[list[StepRecord], list[Validation], list[Event]]:
    """Keep what happened to the weights that exist; return (steps, validations, events), each sorted by step.

    A resumed attempt starts from a checkpoint, so its first step undoes that step and all later ones of the attempts
    before. Events are never undone: that an earlier attempt failed stays true.
    """
    steps: list[StepRecord] = []
    validations: list[Validation] = []
    events: list[Event] = []
    for record in records:
        if isinstance(record, Event):
            events.append(record)
            continue
        if isinstance(record, Statistics | Beginning | Ending):
            continue  # `superseding_statistics`, `ledger`
        undone = (steps, validations) if isinstance(record, StepRecord) else (validations,)
        for kept in undone:
            while kept and kept[-1].step >= record.step and kept[-1].attempt < record.attempt:
                kept.pop()
        (steps if isinstance(record, StepRecord) else validations).append(record)
    return steps, validations, events


def superseding_statistics(records: Iterable[Record]) -> list[Statistics]:
    """Keep the statistics of the weights that exist, sorted by step; see `superseding`."""
    kept: list[Statistics] = []
    for record in records:
        if isinstance(record, StepRecord | Statistics):
            while kept and kept[-1].step >= record.step and kept[-1].attempt < record.attempt:
                kept.pop()
        if isinstance(record, Statistics):
            kept.append(record)
    return kept


def history(path: Path) -> list[dict[str, Any]]:
    """Return one dictionary per step of the run as it stands, with the keys of `StepRecord`.

    Where several attempts did a step, the highest one counts; see `superseding`. Raises what `read` raises.
    """
    steps, validations, _ = superseding(read(path))
    losses = {validation.step: validation.validation_loss for validation in validations}
    names = [field.name for field in fields(StepRecord)]
    table = [{name: getattr(step, name) for name in names} for step in steps]
    for row in table:
        row["validation_loss"] = losses.get(row["step"], row["validation_loss"])
    return table


def _complete_bytes(file: Any) -> int:
    """Return how many bytes of `file` are complete lines."""
    end = file.seek(0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - _TAIL_BYTES)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no not-a-number."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
