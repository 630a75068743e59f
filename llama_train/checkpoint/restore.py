"""Reading checkpoints: on any number of ranks, whatever number wrote them.

Verified is what is read: a chunk's file is read in its checksum blocks (16 MiB), each checked before any of its
bytes is used. What a rank does not need it neither reads nor verifies.
"""

import functools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from omegaconf import OmegaConf

from llama_foundation.compose import to_object
from llama_foundation.errors import CheckpointError, ConfigError
from llama_foundation.files import checksum
from llama_train.checkpoint.collective import Answer, Group, asked_together, gather_bytes
from llama_train.checkpoint.index import (
    INDEX,
    Index,
    TensorEntry,
    complete_steps,
    parse_index,
    rank_file,
    read_index_bytes,
)
from llama_train.checkpoint.stored_chunk import ROWS_BYTES, StoredChunk
from llama_train.config import ModelConfig
from llama_train.engine.engine import Chunk

WEIGHTS = "weights/"
"""What stands before the canonical name of a weight."""


class WeightSource(Protocol):
    """Tensors that can be read in rectangles: a `Checkpoint`, a Hugging Face directory or Meta's files."""

    directory: Path
    group: Group
    tensors: dict[str, TensorEntry]

    def read(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Return one rectangle of a tensor."""

    def model_config(self) -> ModelConfig:
        """Return the shape of the model whose weights these are."""

    def tokenizer_files(self) -> dict[str, Path]:
        """Return the tokenizer's files by their plain names."""


class Checkpoint:
    """One opened checkpoint. `tensors` and `state` are known; data is read when asked for."""

    def __init__(self, directory: Path, index: Index, group: Group = None) -> None:
        self.directory = directory
        self.group = group
        self.step = index.step
        self.state = index.state
        self.tensors = index.tensors
        self.files = list(index.files)
        self._index = index

    def read(self, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        """Return the rectangle of tensor `name` that starts at `offsets`, of shape `lengths`, on the CPU.

        Raises:
            CheckpointError: a file that holds a part of it is missing, truncated or damaged.
        """
        entry, table = self.tensors[name], self._index.chunks[name]
        assert _inside(entry.shape, offsets, lengths), (name, entry.shape, offsets, lengths)
        result = torch.empty(lengths, dtype=entry.dtype)
        if not result.numel():
            return result
        first, past = numpy.array(offsets, dtype=numpy.int64), numpy.array(offsets, numpy.int64) + numpy.array(lengths)
        low = numpy.maximum(table.offsets, first)
        high = numpy.minimum(table.offsets + table.lengths, past)
        for position in numpy.flatnonzero((low < high).all(axis=1)).tolist():
            chunk = StoredChunk(self.directory, self._index, name, position)
            inside = tuple((low[position] - table.offsets[position]).tolist())
            extent = tuple((high[position] - low[position]).tolist())
            begin = (low[position] - first).tolist()
            target = result[tuple(slice(b, b + n) for b, n in zip(begin, extent, strict=True))]
            chunk.read_into(target, inside, extent)
        return result

    def model_config(self) -> ModelConfig:
        """Return the model's configuration, from the run's state.

        Raises:
            CheckpointError: there is none, or it is no model that could be built.
        """
        where = self.directory / INDEX
        if not isinstance(self.state.get("model"), dict):
            raise CheckpointError(f"{where}: state.model is missing; this checkpoint does not say which model it is")
        if "${" in json.dumps(self.state["model"]):
            raise CheckpointError(f"{where}: state.model: holds an interpolation, which no checkpoint writes")
        try:
            config = to_object(OmegaConf.create(self.state["model"]), ModelConfig)
        except (ConfigError, ValueError, TypeError) as error:
            raise CheckpointError(f"{where}: state.model: {error}") from error
        return config

    def tokenizer_files(self) -> dict[str, Path]:
        """Return the tokenizer's files by their plain names."""
        prefix = "tokenizer/"
        return {name.removeprefix(prefix): self.directory / name for name in self.files if name.startswith(prefix)}


def open_checkpoint(path: Path | str, group: Group = None) -> Checkpoint:
    """Open a checkpoint and check everything about it but the tensors' bytes.

    Args:
        path: a step's directory, or a run's or its checkpoints' directory, of which the newest complete one is taken.
        group: a gloo group whose ranks all call this: rank 0 reads the index and checks the files.

    Raises:
        CheckpointError: on every rank; there is none, or it is damaged or incomplete. Names the file and the tensor.
    """

    def find() -> Answer:
        directory = find_checkpoint(Path(path))
        return {"directory": str(directory)}, checked_index_bytes(directory)

    return _opened(*asked_together(find, group), group)


def newest_good(
    directory: Path | str, group: Group = None, below: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Open the newest checkpoint that can be opened, and say why any newer one cannot.

    Args:
        directory: of the run or of its checkpoints; it need not exist.
        below: only checkpoints of lower steps are looked at.

    Returns:
        The checkpoint, or None where none is good; one message for each checkpoint that was passed over.
    """

    def find() -> Answer:
        skipped: list[str] = []
        for step, path in reversed(_published(Path(directory)).items()):
            if below is not None and step >= below:
                continue
            try:
                return {"directory": str(path), "skipped": skipped}, checked_index_bytes(path)
            except CheckpointError as error:
                skipped.append(str(error))
        return {"skipped": skipped}, b""

    message, data = asked_together(find, group)
    return (_opened(message, data, group) if data else None), message["skipped"]


def find_checkpoint(path: Path) -> Path:
    """Return the directory of the checkpoint that `path` means.

    Raises:
        CheckpointError: there is none.
    """
    if (path / INDEX).is_file():
        return path
    found = _published(path)
    if not found:
        what = "holds no checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"{path}: {what}; give a checkpoint (step-...), or the directory of a run that has saved one"
        )
    return found[max(found)]


def restore(source: WeightSource, targets: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield, for every target, a chunk of the same rectangle with the values read from `source`.

    Kinds of tensors (weights, optimizer/exp_avg, ...) that no target asks for are left out; of the kinds asked for,
    `source` must have exactly the tensors that the targets of all ranks together have. If `source` was opened with a
    group, all of its ranks call this.

    Raises:
        CheckpointError: names or shapes differ, before anything is yielded; or a file is damaged.
    """
    wanted = [(t.name, tuple(t.shape), tuple(t.offsets), tuple(t.tensor.shape)) for t in targets]
    shapes = {name: list(shape) for name, shape, _, _ in wanted}
    gathered = gather_bytes(json.dumps(shapes).encode(), source.group)

    def compare() -> Answer:
        together: dict[str, Any] = {}
        for part in gathered:
            together |= json.loads(part)
        check_same_tensors(source, {name: tuple(shape) for name, shape in together.items()})
        return {}, b""

    asked_together(compare, source.group)
    for name, shape, offsets, lengths in wanted:
        yield Chunk(name, shape, offsets, source.read(name, offsets, lengths))


def check_same_tensors(source: WeightSource, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that `source` has exactly the tensors `shapes`, among the kinds of tensors that `shapes` names.

    Raises:
        CheckpointError: naming the first tensor that differs, and both shapes.
    """
    kinds = {_kind(name) for name in shapes}
    found = {name: entry.shape for name, entry in source.tensors.items() if _kind(name) in kinds}
    for name in [*shapes, *found]:
        ours, theirs = shapes.get(name), found.get(name)
        if ours != theirs:
            raise CheckpointError(
                f"{source.directory}: checkpoint of another model: {name} is {_describe(theirs)} in the checkpoint and "
                f"{_describe(ours)} in the model; use the configuration that it was trained with"
            )


def pieces(entry: TensorEntry, most_bytes: int = ROWS_BYTES) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a tensor into rectangles of whole rows, in order, each of at most `most_bytes` (but at least one row)."""
    if not entry.shape:
        yield (), ()
        return
    row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize
    step = max(1, most_bytes // max(1, row_bytes))
    for row in range(0, entry.shape[0], step):
        rest = entry.shape[1:]
        yield (row, *(0 for _ in rest)), (min(step, entry.shape[0] - row), *rest)


def _published(path: Path) -> dict[int, Path]:
    return complete_steps(path / "checkpoints") or complete_steps(path)


def checked_index_bytes(directory: Path) -> bytes:
    """Return the index after checking it, and the files it speaks of.

    Raises:
        CheckpointError: one is missing, a link, of another size, or (small ones) damaged.
    """
    data = read_index_bytes(directory)
    index = parse_index(data, directory / INDEX)
    expected = {rank_file(rank): size for rank, size in enumerate(index.rank_bytes)}
    expected |= {name: size for name, (size, _) in index.files.items()}
    for name, size in expected.items():
        path = directory / name
        if not path.exists():
            raise CheckpointError(f"{path}: missing; this checkpoint cannot be loaded, use an earlier one")
        if path.resolve() != directory.resolve() / name or not path.is_file():
            raise CheckpointError(f"{path}: not a plain file; a checkpoint's files may not be links")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, its checkpoint says {size}; truncated?")
    for name, (_, digest) in index.files.items():
        if checksum((directory / name).read_bytes()) != digest:
            raise CheckpointError(f"{directory / name}: damaged: it does not have its checksum")
    return data


def _opened(message: dict[str, Any], data: bytes, group: Group) -> Checkpoint:
    directory = Path(message["directory"])
    return Checkpoint(directory, parse_index(data, directory / INDEX), group)


def _inside(shape: tuple[int, ...], offsets: tuple[int, ...], lengths: tuple[int, ...]) -> bool:
    return len(shape) == len(offsets) == len(lengths) and all(
        o >= 0 and n >= 0 and o + n <= s for s, o, n in zip(shape, offsets, lengths, strict=True)
    )


@functools.cache
def _kind(name: str) -> str:
    """`weights`, `optimizer/exp_avg` or `optimizer/exp_avg_sq`."""
    return name.rpartition("/")[0]


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"
