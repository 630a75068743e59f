"""Which files, and how they are cut into pieces that workers read on their own."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import InputConfig
from data_pipeline.read import jsonl, parquet
from data_pipeline.read.rows import BadRecordError, source_name
from llama_foundation.errors import ConfigError, DataError

COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class InputFile:
    """A file as it was found; size and time tell whether it is still the same."""

    path: str
    source: str  # of records that name none
    size: int  # bytes
    modified: int  # nanoseconds since 1970


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a JSONL file, or row group `start` of a Parquet file."""

    file: InputFile
    start: int
    end: int
    first_row: int

    @property
    def label(self) -> str:
        return f"{self.file.path} from row {self.first_row}"


def find(settings: InputConfig) -> list[InputFile]:
    """Expand the globs; every file once, sorted by path.

    Raises:
        DataError: a glob matches nothing, or a file has an unknown suffix.
    """
    paths: set[str] = set()
    for pattern in settings.paths:
        matched = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
        files = [os.path.normpath(path) for path in matched if os.path.isfile(path)]
        if not files:
            hint = f"; it is a directory: write {pattern.rstrip('/')}/**/*.jsonl" if os.path.isdir(pattern) else ""
            raise DataError(f"input.paths: no file matches {pattern}{hint} (from {os.getcwd()})")
        paths.update(files)
    return [_describe(path, settings) for path in sorted(paths)]


def cut(files: list[InputFile], partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """Cut plain JSONL by bytes and Parquet by row group; `first_row` of the later pieces of JSONL is not known yet."""
    pieces = []
    for file in files:
        path = Path(file.path)
        if path.suffix == ".parquet":
            for index, (first, _) in enumerate(parquet.row_groups(path, settings)):
                pieces.append(Piece(file, index, index + 1, first))
        elif path.suffix in COMPRESSIONS:
            pieces.append(Piece(file, 0, file.size, 0))
        else:
            for start in range(0, file.size, partition_bytes):
                pieces.append(Piece(file, start, min(start + partition_bytes, file.size), 0))
    return pieces


def needs_line_count(piece: Piece) -> bool:
    """Whether lines of this piece must be counted before the pieces behind it know their rows."""
    path = Path(piece.file.path)
    return path.suffix in (".jsonl", ".ndjson") and piece.end < piece.file.size


def number_rows(pieces: list[Piece], lines: dict[Piece, int]) -> list[Piece]:
    """Return the pieces with `first_row` filled in from the number of lines in the pieces before."""
    numbered: list[Piece] = []
    following = 0
    for piece in pieces:
        if Path(piece.file.path).suffix == ".parquet":
            numbered.append(piece)
            continue
        following = following if piece.start else 0
        numbered.append(Piece(piece.file, piece.start, piece.end, following))
        following += lines.get(piece, 0)
    return numbered


def count_lines(piece: Piece) -> int:
    """Return how many lines begin in a piece of plain JSONL."""
    return jsonl.count_lines(Path(piece.file.path), piece.start, piece.end)


def _describe(path: str, settings: InputConfig) -> InputFile:
    name = Path(path).name
    stem, suffix = os.path.splitext(name)
    if suffix in COMPRESSIONS:
        stem, suffix = os.path.splitext(stem)
        if suffix == ".parquet":
            suffix = ".parquet inside " + os.path.splitext(name)[1]
    if suffix not in FORMATS:
        raise DataError(
            f"{path}: cannot read {suffix or 'a file without a suffix'}; known: .jsonl and .ndjson "
            "(plain, .gz, .zst), .parquet"
        )
    try:
        source = source_name(settings.source or stem)
    except BadRecordError as error:
        raise ConfigError(f"input.source={settings.source or stem} is too long for a directory name") from error
    try:
        status = os.stat(path)
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return InputFile(path, source, status.st_size, status.st_mtime_ns)
