"""JSON lines: plain files by byte ranges, .gz and .zst as a stream, one record per line.

Memory is bounded by the longest line allowed and, for zstd, by the largest window allowed. Whatever is wrong with a
line is counted under its reason with file and row, and the next line is read.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
import zstandard

from data_pipeline.config import InputConfig
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import BadRecordError, Rows
from data_pipeline.read.storage import open_file

READ_BYTES = 1024 * 1024
BLOCK_BYTES = 128 * 1024
"""The largest block of the format (RFC 8878, section 3.1.1.2.4)."""

_SENTINEL = b"end of compressed file" * 20
"""Repetitive, so that its compressed bytes taken for the rest of a torn frame can never spell it."""


class DamagedFileError(Exception):
    """The compressed data breaks off or is not what it says; whole lines up to the block before were read."""


def cut(file: InputFile, partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """Cut a plain file by bytes; a compressed one is one piece. `first_row` of the later pieces is not known yet."""
    if _compressed(file.path):
        return [Piece(file, 0, file.size, 0)]
    starts = range(0, file.size, partition_bytes)
    return [Piece(file, start, min(start + partition_bytes, file.size), 0) for start in starts]


def needs_survey(piece: Piece, partition_bytes: int) -> bool:
    """Whether lines of this piece must be counted before the pieces behind it know their rows."""
    return piece.end < piece.file.size


def survey(piece: Piece, partition_bytes: int, settings: InputConfig) -> list[int]:
    """Return how many lines begin in a piece of a plain file, as a list of one number."""
    first, last = max(piece.start - 1, 0), piece.end - 1  # a line begins behind a newline
    count = int(piece.start == 0 and piece.end > 0)
    with open_file(piece.file.path) as file:
        file.seek(first)
        while first < last and (block := file.read(min(READ_BYTES, last - first))):
            count += block.count(b"\n")
            first += len(block)
    return [count]


def settle(pieces: list[Piece], surveys: dict[Piece, list[int]]) -> list[Piece]:
    """Return the pieces of one file with `first_row` filled in from the number of lines in the pieces before."""
    settled, following = [], 0
    for piece in pieces:
        settled.append(Piece(piece.file, piece.start, piece.end, following))
        following += sum(surveys.get(piece, []))
    return settled


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the records of the lines that begin in the bytes of a piece to `rows`; yields after each line."""
    row = piece.first_row
    try:
        for line, size in _lines(piece, settings):
            _add_line(rows, row, line, size)
            row += 1
            yield
    except DamagedFileError as error:
        rows.problem(row, "damaged_file", 0, str(error))


def _add_line(rows: Rows, row: int, line: bytes | None, size: int) -> None:
    if line is None:
        return rows.problem(row, "line_too_long", size, f"a line of {size:,} bytes")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    if not isinstance(record, dict) or not rows.kinds(record).isdisjoint(_INEXACT):
        try:
            record = _by_the_standard_library(line, row)
        except BadRecordError as problem:
            shown = line[:2000].decode("utf-8", "replace") if str(problem) != "blank_line" else ""
            return rows.problem(row, str(problem), size, shown)
    return rows.add(row, record, size)


_INEXACT = {float, list, dict}
"""Types of values in which orjson may have rounded an integer of more than 64 bits."""


def _by_the_standard_library(line: bytes, row: int) -> dict[str, Any]:
    """Read what orjson refuses or rounds: NaN, numbers of any size, half of a surrogate pair, a byte order mark.

    Raises:
        BadRecordError: what is wrong with the line.
    """
    try:
        text = line.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError:
        raise BadRecordError("invalid_utf8") from None
    if not text.strip():
        raise BadRecordError("blank_line")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRecordError("invalid_json") from None
    if not isinstance(record, dict):
        raise BadRecordError("not_an_object")
    return record


def _compressed(path: str) -> bool:
    return path.endswith((".gz", ".zst"))


def _lines(piece: Piece, settings: InputConfig) -> Iterator[tuple[bytes | None, int]]:
    """Yield (line without its newline, its bytes) for lines that begin in the piece; None for a line too long."""
    path, start, limit = piece.file.path, piece.start, settings.max_line_bytes
    with open_file(path) as file:
        if path.endswith(".gz"):
            yield from _split(_gzip_blocks(file), limit)
        elif path.endswith(".zst"):
            yield from _split(_zstd_blocks(file, settings.max_zstd_window_bytes), limit)
        else:
            position = _first_line(file, start, piece.end) if start > 0 else 0
            file.seek(position)
            lines = _split(iter(lambda: file.read(READ_BYTES), b""), limit)
            while position < piece.end and (line := next(lines, None)) is not None:
                position += line[1] + 1
                yield line


def _first_line(file: BinaryIO, start: int, end: int) -> int:
    """Return where the first line begins that begins in [start, end), or `end`; no byte behind that is read.

    Otherwise each of the pieces that one long line fills would read all the rest of it.
    """
    position = start - 1  # a line begins behind a newline
    file.seek(position)
    while position < end - 1 and (block := file.read(min(READ_BYTES, end - 1 - position))):
        if (newline := block.find(b"\n")) >= 0:
            return position + newline + 1
        position += len(block)
    return end


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
            # read1: an error of `read` takes with it all that the same call had decompressed before
            while block := stream.read1(BLOCK_BYTES):
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
            # read1, of one zstd block: as above
            while block := stream.read1(BLOCK_BYTES):
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
