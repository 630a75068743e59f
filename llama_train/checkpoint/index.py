"""The index of a checkpoint: what it says, and everything that must hold before a byte of it is believed.

`index.json` is one JSON object whose first line is the checksum of the rest. Per tensor it keeps columns, one entry
per chunk: `rank` (whose file), `start` (byte in that file), `offsets` and `lengths` (the rectangle), `checksums` (one
xxh3-128 per block of `block_bytes`, 32 hexadecimal digits each, joined).
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
VERSION = 1
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
    checksums: list[str]  # the digests of a chunk's blocks, joined


@dataclass(frozen=True)
class Index:
    """A parsed, checked index."""

    step: int
    block_bytes: int
    rank_bytes: list[int]  # exact size of each rank's file
    files: dict[str, tuple[int, str]]  # small files beside the tensors: size and checksum
    tensors: dict[str, TensorEntry]
    chunks: dict[str, ChunkTable]
    state: dict[str, Any]


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


def encode_index(
    step: int,
    block_bytes: int,
    ranks: list[dict[str, Any]],
    files: dict[str, list[Any]],
    state: dict[str, Any],
) -> bytes:
    """Merge the tables of all ranks into the bytes of an index.

    Args:
        ranks: per rank `{"bytes": size of its file, "tensors": {name: {"dtype", "shape", columns}}}`.
        files: name → [size, checksum].

    Raises:
        CheckpointError: two ranks disagree about a tensor.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for rank, table in enumerate(ranks):
        for name, part in table["tensors"].items():
            entry = tensors.setdefault(
                name,
                {
                    "dtype": part["dtype"],
                    "shape": part["shape"],
                    "rank": [],
                    "start": [],
                    "offsets": [],
                    "lengths": [],
                    "checksums": [],
                },
            )
            if (entry["dtype"], entry["shape"]) != (part["dtype"], part["shape"]):
                raise CheckpointError(
                    f"{name}: rank {rank} says {part['dtype']} {part['shape']}, another rank {entry['dtype']} "
                    f"{entry['shape']}; all ranks must run one model in one precision"
                )
            entry["rank"] += [rank] * len(part["start"])
            for column in ("start", "offsets", "lengths", "checksums"):
                entry[column] += part[column]
    body = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "block_bytes": block_bytes,
            "rank_bytes": [table["bytes"] for table in ranks],
            "files": files,
            "tensors": tensors,
            "state": state,
        },
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    ).encode()
    return seal(body)


def seal(body: bytes) -> bytes:
    """Put the checksum line before the JSON object `body`."""
    rest = b"\n" + body[1:]
    return b'{"checksum":"' + checksum(rest).encode() + b'",' + rest


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
    rank_bytes = value.get("rank_bytes")
    if not isinstance(rank_bytes, list):
        _refuse(where, "rank_bytes: not a list")
    for size in rank_bytes:
        _integer(size, 0, 2**60, where, "rank_bytes")
    state = value.get("state")
    if not isinstance(state, dict):
        _refuse(where, "state: not an object")
    files = _parse_files(value.get("files"), where)
    tensors, chunks = {}, {}
    listed = value.get("tensors")
    if not isinstance(listed, dict):
        _refuse(where, "tensors: not an object")
    for name, entry in listed.items():
        if not 0 < len(name) <= 512:
            _refuse(where, f"a tensor name of {len(name)} characters")
        tensors[name], chunks[name] = _parse_tensor(name, entry, rank_bytes, block_bytes, where)
    _check_bytes_used_once(tensors, chunks, where)
    return Index(step, block_bytes, rank_bytes, files, tensors, chunks, state)


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


def _parse_tensor(
    name: str, entry: Any, rank_bytes: list[int], block_bytes: int, where: Path | str
) -> tuple[TensorEntry, ChunkTable]:
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

    checksums = entry.get("checksums")
    if not isinstance(checksums, list) or not all(isinstance(digests, str) for digests in checksums):
        _refuse(where, f"{name}: checksums is not a list of strings")
    count, dimensions = len(checksums), len(shape)
    rank = _column(entry, "rank", (count,), name, where)
    start = _column(entry, "start", (count,), name, where)
    offsets = _column(entry, "offsets", (count, dimensions), name, where)
    lengths = _column(entry, "lengths", (count, dimensions), name, where)

    limits = numpy.array(shape, dtype=numpy.int64)
    # offsets are compared before they are added to, so that no sum can overflow
    if (offsets < 0).any() or (lengths < 1).any() or (offsets > limits).any() or (lengths > limits - offsets).any():
        _refuse(where, f"{name}: a chunk lies outside of the tensor's shape {shape}")
    if (rank < 0).any() or (rank >= len(rank_bytes)).any():
        _refuse(where, f"{name}: a chunk lies in the file of a rank that does not exist")
    sizes = chunk_bytes(lengths, dtype)
    room = numpy.array(rank_bytes, dtype=numpy.int64)[rank] if count else sizes
    outside = (start < 0) | (start > room) | (sizes > room - start)
    if outside.any():
        _refuse(where, f"{name}: a chunk lies outside of {rank_file(int(rank[outside][0]))}")
    for size, digests in zip(sizes.tolist(), checksums, strict=True):
        if len(digests) != _DIGEST_DIGITS * -(-size // block_bytes):
            _refuse(where, f"{name}: a chunk of {size} bytes with {len(digests)} digits of checksums")
    if not covers_exactly(tuple(shape), offsets, lengths):
        found, whole = int(numpy.prod(lengths, axis=1).sum()), math.prod(shape)
        what = "chunks are missing" if found < whole else "chunks overlap"
        _refuse(where, f"{name}: {what}: they hold {found} elements of {whole} (shape {shape})")
    return TensorEntry(dtype, tuple(shape)), ChunkTable(rank, start, offsets, lengths, checksums)


def covers_exactly(shape: tuple[int, ...], offsets: numpy.ndarray, lengths: numpy.ndarray) -> bool:
    """Whether the rectangles tile `shape`: every element in exactly one of them.

    A sum of indicator functions of boxes is determined by its mixed difference, which is nonzero only at the boxes'
    corners, with sign (-1)**(number of far coordinates). So the boxes tile the whole exactly when the signed corners
    of all boxes, added up, are those of the whole: n log n for n boxes, whatever their arrangement.
    """
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


def chunk_bytes(lengths: numpy.ndarray, dtype: torch.dtype) -> numpy.ndarray:
    """Return the size in bytes of every chunk of a table."""
    return numpy.prod(lengths, axis=1, dtype=numpy.int64) * dtype.itemsize


def _check_bytes_used_once(tensors: dict[str, TensorEntry], chunks: dict[str, ChunkTable], where: Path | str) -> None:
    """No two chunks share bytes, so that the files bound what a reader can be made to allocate."""
    names = [name for name, table in chunks.items() if len(table.start)]
    if not names:
        return
    rank = numpy.concatenate([chunks[name].rank for name in names])
    start = numpy.concatenate([chunks[name].start for name in names])
    size = numpy.concatenate([chunk_bytes(chunks[name].lengths, tensors[name].dtype) for name in names])
    order = numpy.lexsort((start, rank))
    shared = (rank[order][1:] == rank[order][:-1]) & ((start + size)[order][:-1] > start[order][1:])
    if shared.any():
        position = int(order[1:][shared][0])
        owner = numpy.repeat(numpy.arange(len(names)), [len(chunks[name].start) for name in names])
        _refuse(
            where, f"{names[owner[position]]}: a chunk shares bytes of {rank_file(int(rank[position]))} with another"
        )


def _column(entry: dict[str, Any], column: str, shape: tuple[int, ...], name: str, where: Path | str) -> numpy.ndarray:
    # types are looked at before numpy is: it would take strings and fractions too, and make room for the longest string
    rows = entry.get(column)
    right = isinstance(rows, list) and len(rows) == shape[0]
    if right and len(shape) == 2:
        right = set(map(type, rows)) <= {list} and set(map(len, rows)) <= {shape[1]}
        rows = list(itertools.chain.from_iterable(rows)) if right else rows
    if not right or not set(map(type, rows)) <= {int} or (rows and not -(2**62) < min(rows) <= max(rows) < 2**62):
        _refuse(where, f"{name}: {column} is not a table of integers of shape {list(shape)}")
    return numpy.array(rows, dtype=numpy.int64).reshape(shape)


def _integer(value: Any, least: int, most: int, where: Path | str, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        _refuse(where, f"{what}: {str(value)[:80]} is not an integer from {least} to {most}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(where: Path | str, what: str) -> NoReturn:
    raise CheckpointError(f"{where}: {what}")
