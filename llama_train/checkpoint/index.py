"""The index of a checkpoint: what it says, and everything that must hold before a byte of it is believed.

`index.json` is one JSON object whose first line is the checksum of the rest. `tensors` gives names, dtypes and shapes.
`ranks` has an object for each rank's file: its size, and columns of its chunks, in the order in which they lie in the
file, each at the next multiple of 64 bytes: `tensors` (the chunk's tensor, as a position in the other `tensors`),
`offsets` and `lengths` (the rectangle, one number for each dimension of the tensor; all chunks' joined), `checksums`
(one xxh3-128 for each block of `block_bytes` of a chunk, 32 hexadecimal digits each; joined).
"""

import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy
import torch

from llama_foundation.errors import CheckpointError
from llama_foundation.files import checksum

INDEX = "index.json"
FORMAT = "llama-train checkpoint"
VERSION = 2
ALIGNMENT = 64  # bytes; any dtype can be mapped from such an address
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}

_STEP = re.compile(r"step-(\d{8,18})")
_MOST_DIMENSIONS = 4  # a weight has two; the coverage check looks at 2**dimensions corners of every chunk
_MOST_ELEMENTS = 2**50
_MOST_INDEX_BYTES = 8 * 2**30
_LARGEST_BLOCK = 2**30
_DIGEST_DIGITS = 32


@dataclass(frozen=True)
class TensorEntry:
    """What a checkpoint knows of one whole tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of one tensor are. Arrays are int64, one row per chunk; D is the number of dimensions."""

    rank: numpy.ndarray  # [chunks]: whose file
    start: numpy.ndarray  # [chunks]: first byte in that file
    offsets: numpy.ndarray  # [chunks, D]
    lengths: numpy.ndarray  # [chunks, D]
    digest: numpy.ndarray  # [chunks]: which of its rank's digests is that of the first block


@dataclass(frozen=True)
class Index:
    """A parsed, checked index."""

    step: int
    block_bytes: int
    rank_bytes: list[int]  # exact size of each rank's file
    files: dict[str, tuple[int, str]]  # small files beside the tensors: size and checksum
    tensors: dict[str, TensorEntry]
    chunks: dict[str, ChunkTable]
    digests: list[str]  # of each rank's blocks, joined
    state: dict[str, Any]

    def digest(self, rank: int, number: int) -> str:
        """Return one of the digests of a rank's file."""
        return self.digests[rank][_DIGEST_DIGITS * number : _DIGEST_DIGITS * (number + 1)]


def step_name(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def rank_file(rank: int) -> str:
    """Return the name of the file that rank `rank` writes."""
    return f"rank-{rank:05d}.bin"


def complete_steps(directory: Path) -> dict[int, Path]:
    """Return the published checkpoints in `directory`, step → path, ascending."""
    found = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and (path / INDEX).is_file():
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def is_safe_name(name: str) -> bool:
    """Whether `name` is a relative path that stays inside its directory and hides nothing."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and str(PurePosixPath(*parts)) == name
        and not any(part in ("/", "..") or part.startswith(".") or "\\" in part or "\0" in part for part in parts)
    )


def aligned(position: int) -> int:
    """Return where in a file the next chunk lies if the one before ends at `position`."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def read_index_bytes(directory: Path) -> bytes:
    """Return the bytes of the index in `directory`.

    Raises:
        CheckpointError: it is missing, is no regular file, or is absurdly large.
    """
    path = directory / INDEX
    try:
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: missing; {directory} is no complete checkpoint")
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MOST_INDEX_BYTES} bytes; this is no index")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def parse_index(data: bytes, where: Path | str) -> Index:
    """Parse and check an index as untrusted input; `where` names it in errors.

    Raises:
        CheckpointError: it is damaged, of another version, or its tensors are not covered exactly once.
    """
    head, line, rest = data[:64].partition(b"\n")[0], data.find(b"\n"), data[data.find(b"\n") :]
    if line > 64 or head != b'{"checksum":"' + checksum(rest).encode() + b'",':
        _refuse(where, "damaged: its checksum does not fit its contents")
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not readable as JSON: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        _refuse(where, f"not the index of a {FORMAT}")
    if value.get("version") != VERSION:
        _refuse(where, f"format version {value.get('version')!r}; this release reads version {VERSION}")
    step = _integer(value.get("step"), 0, 10**18, where, "step")
    block_bytes = _integer(value.get("block_bytes"), 1, _LARGEST_BLOCK, where, "block_bytes")
    state = value.get("state")
    if not isinstance(state, dict):
        _refuse(where, "state: not an object")
    files = _parse_files(value.get("files"), where)
    tensors = _parse_tensors(value.get("tensors"), where)
    ranks = value.get("ranks")
    if not isinstance(ranks, list) or not ranks or not all(isinstance(part, dict) for part in ranks):
        _refuse(where, "ranks: not a list of at least one object")
    whole = _WholeTensors(tensors)
    tables = [_parse_rank(rank, part, whole, block_bytes, where) for rank, part in enumerate(ranks)]
    chunks = _by_tensor(tensors, tables)
    for name, (entry, table) in zip(tensors, zip(tensors.values(), chunks, strict=True), strict=True):
        if not covers_exactly(entry.shape, table.offsets, table.lengths):
            found, elements = int(numpy.prod(table.lengths, axis=1).sum()), math.prod(entry.shape)
            what = "chunks are missing" if found < elements else "chunks overlap"
            _refuse(where, f"{name}: {what}: they hold {found} elements of {elements} (shape {list(entry.shape)})")
    return Index(
        step,
        block_bytes,
        [part["bytes"] for part in ranks],
        files,
        tensors,
        dict(zip(tensors, chunks, strict=True)),
        [part["checksums"] for part in ranks],
        state,
    )


def _parse_files(value: Any, where: Path | str) -> dict[str, tuple[int, str]]:
    if not isinstance(value, dict):
        _refuse(where, "files: not an object")
    files = {}
    for name, entry in value.items():
        if not is_safe_name(name):
            _refuse(where, f"files: {name!r} is not a plain relative path")
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
            _refuse(where, f"files: {name}: not [size, checksum]")
        files[name] = (_integer(entry[0], 0, 2**60, where, name), entry[1])
    return files


def _parse_tensors(listed: Any, where: Path | str) -> dict[str, TensorEntry]:
    if not isinstance(listed, dict):
        _refuse(where, "tensors: not an object")
    tensors = {}
    for name, entry in listed.items():
        if not 0 < len(name) <= 512:
            _refuse(where, f"a tensor name of {len(name)} characters")
        if not isinstance(entry, dict):
            _refuse(where, f"{name}: not an object")
        dtype = DTYPES.get(entry.get("dtype")) if isinstance(entry.get("dtype"), str) else None
        if dtype is None:
            _refuse(where, f"{name}: dtype {entry.get('dtype')!r}; known: {', '.join(DTYPES)}")
        shape = entry.get("shape")
        if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
            _refuse(where, f"{name}: shape is not a list of at most {_MOST_DIMENSIONS} sizes")
        for size in shape:
            _integer(size, 0, _MOST_ELEMENTS, where, f"{name}: shape")
        if math.prod(size for size in shape if size) > _MOST_ELEMENTS:
            _refuse(where, f"{name}: shape {shape} is too large to be true")
        tensors[name] = TensorEntry(dtype, tuple(shape))
    return tensors


class _WholeTensors:
    """All tensors as columns; what one has fewer dimensions than another, M at most, is of length 1."""

    def __init__(self, tensors: dict[str, TensorEntry]) -> None:
        self.names = list(tensors)
        self.dimensions = numpy.array([len(entry.shape) for entry in tensors.values()], dtype=numpy.int64)
        self.item_bytes = numpy.array([entry.dtype.itemsize for entry in tensors.values()], dtype=numpy.int64)
        self.shapes = numpy.ones((len(tensors), self.dimensions.max(initial=0)), dtype=numpy.int64)  # [tensors, M]
        for number, entry in enumerate(tensors.values()):
            self.shapes[number, : len(entry.shape)] = entry.shape


@dataclass(frozen=True)
class _RankTable:
    """The chunks of one rank's file, one row each, of offset 0 and length 1 along what a tensor has fewer than M."""

    tensor: numpy.ndarray  # [chunks]
    start: numpy.ndarray  # [chunks]
    offsets: numpy.ndarray  # [chunks, M]
    lengths: numpy.ndarray  # [chunks, M]
    digest: numpy.ndarray  # [chunks]


def _parse_rank(
    rank: int, part: dict[str, Any], whole: _WholeTensors, block_bytes: int, where: Path | str
) -> _RankTable:
    file = rank_file(rank)
    total = _integer(part.get("bytes"), 0, 2**60, where, f"{file}: bytes")
    tensor = _column(part, "tensors", file, where)
    if len(tensor) and not 0 <= tensor.min() <= tensor.max() < len(whole.names):
        _refuse(where, f"{file}: a chunk of a tensor that does not exist")
    limits = whole.shapes[tensor]
    inside = numpy.arange(limits.shape[1]) < whole.dimensions[tensor, None]
    offsets = _rectangles(part, "offsets", inside, 0, file, where)
    lengths = _rectangles(part, "lengths", inside, 1, file, where)
    # offsets are compared before they are added to, so that no sum can overflow
    outside = ((offsets < 0) | (lengths < 1) | (offsets > limits) | (lengths > limits - offsets)).any(axis=1)
    if outside.any():
        number = int(tensor[outside][0])
        shape = whole.shapes[number, : whole.dimensions[number]].tolist()
        _refuse(where, f"{whole.names[number]}: a chunk in {file} lies outside of the tensor's shape {shape}")
    sizes = numpy.prod(lengths, axis=1) * whole.item_bytes[tensor]
    if (sizes > total).any() or len(sizes) * total >= 2**62:
        _refuse(where, f"{file}: has {total} bytes, less than its chunks take")
    start = numpy.cumsum(aligned(sizes)) - aligned(sizes)
    end = int((start + sizes).max(initial=0))
    if end != total:
        _refuse(where, f"{file}: has {total} bytes, but its chunks end at byte {end}")
    blocks = -(-sizes // block_bytes)
    digests = part.get("checksums")
    if not isinstance(digests, str) or len(digests) != _DIGEST_DIGITS * int(blocks.sum()):
        _refuse(where, f"{file}: checksums: not {_DIGEST_DIGITS} digits for each of {blocks.sum()} blocks")
    return _RankTable(tensor, start, offsets, lengths, numpy.cumsum(blocks) - blocks)


def _by_tensor(tensors: dict[str, TensorEntry], ranks: list[_RankTable]) -> list[ChunkTable]:
    """Sort the chunks of all ranks by their tensors."""
    tensor = numpy.concatenate([table.tensor for table in ranks])
    order = numpy.argsort(tensor, kind="stable")
    rank = numpy.repeat(numpy.arange(len(ranks)), [len(table.tensor) for table in ranks])[order]
    start, offsets, lengths, digest = (
        numpy.concatenate([getattr(table, column) for table in ranks])[order]
        for column in ("start", "offsets", "lengths", "digest")
    )
    bounds = numpy.searchsorted(tensor[order], numpy.arange(len(tensors) + 1)).tolist()
    tables = []
    for entry, first, past in zip(tensors.values(), bounds, bounds[1:], strict=False):
        rows, dimensions = slice(first, past), len(entry.shape)
        tables.append(
            ChunkTable(rank[rows], start[rows], offsets[rows, :dimensions], lengths[rows, :dimensions], digest[rows])
        )
    return tables


def covers_exactly(shape: tuple[int, ...], offsets: numpy.ndarray, lengths: numpy.ndarray) -> bool:
    """Whether the rectangles tile `shape`: every element in exactly one of them.

    A sum of indicator functions of boxes is determined by its mixed difference, which is nonzero only at the boxes'
    corners, with sign (-1)**(number of far coordinates). So the boxes tile the whole exactly when the signed corners
    of all boxes, added up, are those of the whole: n log n for n boxes, whatever their arrangement.
    """
    if _whole_rows(shape, offsets, lengths):
        order = numpy.argsort(offsets[:, 0])
        begins, ends = offsets[order, 0], (offsets + lengths)[order, 0]
        return bool(begins[0] == 0 and ends[-1] == shape[0] and (begins[1:] == ends[:-1]).all())
    whole_offsets = numpy.zeros((1, len(shape)), dtype=numpy.int64)
    whole_lengths = numpy.array([shape], dtype=numpy.int64).reshape(1, len(shape))
    boxes = numpy.concatenate([offsets, whole_offsets])
    extents = numpy.concatenate([lengths, whole_lengths])
    weights = numpy.ones(len(boxes), dtype=numpy.int64)
    weights[-1] = -1
    corners, signs = [], []
    for far in itertools.product((0, 1), repeat=len(shape)):
        corners.append(boxes + extents * numpy.array(far, dtype=numpy.int64))
        signs.append(weights * (-1) ** sum(far))
    points, sums = numpy.concatenate(corners), numpy.concatenate(signs)
    if not shape:
        return int(sums.sum()) == 0
    order = numpy.lexsort(points.T)
    points, sums = points[order], sums[order]
    first = numpy.concatenate([[True], (points[1:] != points[:-1]).any(axis=1)])
    return not numpy.add.reduceat(sums, numpy.flatnonzero(first)).any()


def _whole_rows(shape: tuple[int, ...], offsets: numpy.ndarray, lengths: numpy.ndarray) -> bool:
    """Whether there are rectangles, and all are rows of the tensor: the common case, and quickly checked."""
    return bool(len(shape) and len(offsets) and not offsets[:, 1:].any() and (lengths[:, 1:] == shape[1:]).all())


def _rectangles(
    part: dict[str, Any], column: str, inside: numpy.ndarray, fill: int, file: str, where: Path | str
) -> numpy.ndarray:
    """A column with a number for each dimension of each chunk, as [chunks, M]."""
    flat = _column(part, column, file, where)
    if len(flat) != inside.sum():
        _refuse(where, f"{file}: {column} has {len(flat)} numbers for the {inside.sum()} dimensions of its chunks")
    rows = numpy.full(inside.shape, fill, dtype=numpy.int64)
    rows[inside] = flat
    return rows


def _column(part: dict[str, Any], column: str, file: str, where: Path | str) -> numpy.ndarray:
    # types are looked at before numpy is: it would take strings and fractions too, and make room for the longest string
    numbers = part.get(column)
    if not isinstance(numbers, list) or not set(map(type, numbers)) <= {int}:
        _refuse(where, f"{file}: {column} is not a list of integers")
    try:
        return numpy.array(numbers, dtype=numpy.int64)
    except OverflowError:
        _refuse(where, f"{file}: {column} holds an integer that is too large to be true")


def _integer(value: Any, least: int, most: int, where: Path | str, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        _refuse(where, f"{what}: {str(value)[:80]} is not an integer from {least} to {most}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(where: Path | str, what: str) -> NoReturn:
    raise CheckpointError(f"{where}: {what}")
