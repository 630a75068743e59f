"""JSON lines: plain files by byte ranges, .gz and .zst as a stream, one record per line.

Memory is bounded by the longest line allowed and, for zstd, by the largest window allowed. Whatever is wrong with a
line is counted under its reason with file and row, and the next line is read.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data_pipeline.config import InputConfig
from data_pipeline.read.rows import Rows

READ_BYTES = 1024 * 1024
ZSTD_BLOCK_BYTES = 128 * 1024
"""The largest block of the format (RFC 8878, section 3.1.1.2.4)."""

_SENTINEL = b"end of compressed file" * 20
"""Repetitive, so that its compressed bytes taken for the rest of a torn frame can never spell it."""


class DamagedFileError(Exception):
    """The compressed data breaks off or is not what it says; whole lines up to the block before were read."""


def count_lines(path: Path, start: int, end: int) -> int:
    """Return how many lines begin in the bytes [start, end) of a plain file."""
    first, last = max(start - 1, 0), end - 1  # a line begins behind a newline
    count = int(start == 0 and end > 0)
    with open(path, "rb") as file:
        file.seek(first)
        while first < last and (block := file.read(min(READ_BYTES, last - first))):
            count += block.count(b"\n")
            first += len(block)
    return count


def read(path: Path, start: int, end: int, first_row: int, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the records of the lines that begin in [start, end) to `rows`; yields after each line.

    Args:
        start, end: bytes of a plain file; of a compressed file always its whole range.
        first_row: number of the line that begins first in the range, from 0.
    """
    row = first_row
    try:
        for line, size in _lines(path, start, end, settings):
            _add_line(rows, row, line, size)
            row += 1
            yield
    except DamagedFileError as error:
        rows.problem(row, "damaged_file", 0, str(error))


def _add_line(rows: Rows, row: int, line: bytes | None, size: int) -> None:
    if line is None:
        return rows.problem(row, "line_too_long", size, f"a line of {size} bytes")
    shown = line[:2000].decode("utf-8", "replace")
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError:
        return rows.problem(row, "invalid_utf8", size, shown)
    if not text.strip():
        return rows.problem(row, "blank_line", size, "")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return rows.problem(row, "invalid_json", size, shown)
    if not isinstance(record, dict):
        return rows.problem(row, "not_an_object", size, shown)
    return rows.add(row, record, size)


def _lines(path: Path, start: int, end: int, settings: InputConfig) -> Iterator[tuple[bytes | None, int]]:
    """Yield (line without its newline, its bytes) for lines that begin in [start, end); None for a line too long."""
    limit = settings.max_line_bytes
    with open(path, "rb") as file:
        if path.suffix == ".gz":
            yield from _split(_gzip_blocks(file), limit)
        elif path.suffix == ".zst":
            yield from _split(_zstd_blocks(file, settings.max_zstd_window_bytes), limit)
        else:
            position = max(start - 1, 0)
            file.seek(position)
            lines = _split(iter(lambda: file.read(READ_BYTES), b""), limit)
            if start > 0:
                position += next(lines, (None, 0))[1] + 1
            while position < end and (line := next(lines, None)) is not None:
                position += line[1] + 1
                yield line


def _split(blocks: Iterator[bytes], limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Cut blocks at newlines; a line of more than `limit` bytes comes as None and is never held whole."""
    pieces: list[bytes] = []
    length = 0
    for block in blocks:
        position = 0
        while (newline := block.find(b"\n", position)) >= 0:
            length += newline - position
            pieces.append(block[position:newline])
            yield (b"".join(pieces) if length <= limit else None), length
            pieces, length, position = [], 0, newline + 1
        length += len(block) - position
        pieces = [*pieces, block[position:]] if length <= limit else []
    if length:
        yield (b"".join(pieces) if length <= limit else None), length


def _gzip_blocks(file: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read(READ_BYTES):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(f"gzip: {error}") from error


def _zstd_blocks(file: BinaryIO, max_window_bytes: int) -> Iterator[bytes]:
    """Decompress all frames.

    The library ends a truncated frame in silence. So one more frame with a known content is put behind the file:
    only if that content comes out last was everything before it whole.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=max_window_bytes)
    source = _Chain(file, zstandard.ZstdCompressor().compress(_SENTINEL))
    held = b""
    try:
        with decompressor.stream_reader(source, read_across_frames=True, closefd=False) as stream:
            # read1 of one zstd block: an error takes with it what the same call had decompressed before
            while block := stream.read1(ZSTD_BLOCK_BYTES):
                held += block
                yield held[: -len(_SENTINEL)]
                held = held[-len(_SENTINEL) :]
    except zstandard.ZstdError as error:
        yield held
        raise DamagedFileError(f"zstd: {error}") from error
    if held != _SENTINEL:
        yield held
        raise DamagedFileError("zstd: the file breaks off in the middle of a frame")


class _Chain(io.RawIOBase):
    """A file, and some bytes behind it, one by one: the library takes a whole frame in its hands for a fresh start."""

    def __init__(self, file: BinaryIO, tail: bytes) -> None:
        self._file = file
        self._tail = io.BytesIO(tail)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or self._tail.read(1)
