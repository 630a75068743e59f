"""How files are cut into pieces that workers read on their own.

A format is a module with `cut` (in the main process: what can be known without reading) and `read`. Where the borders
of pieces, or their first rows, are known only after a look at the bytes, it has `needs_survey`, `survey` (in a worker)
and `settle` too.
"""

from collections.abc import Iterator
from itertools import groupby
from types import ModuleType

from data_pipeline.config import InputConfig
from data_pipeline.read import arrow, hub, jsonl, parquet, warc, wat
from data_pipeline.read.inputs import find, split_suffix
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import Rows

__all__ = ["InputFile", "Piece", "cut", "find", "needs_survey", "read", "settle", "survey"]

FORMATS = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".parquet": parquet,
    ".arrow": arrow,
    ".warc": warc,
    ".wet": warc,
    ".wat": wat,
}


def cut(files: list[InputFile], partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """Return the pieces as far as they are known; `settle` completes them."""
    return [piece for file in files for piece in _format(file).cut(file, partition_bytes, settings)]


def needs_survey(piece: Piece, partition_bytes: int) -> bool:
    """Whether a worker must look at the bytes of this piece before it, or what follows it, can be read."""
    format_ = _format(piece.file)
    return hasattr(format_, "survey") and format_.needs_survey(piece, partition_bytes)


def survey(piece: Piece, partition_bytes: int, settings: InputConfig) -> list[int]:
    """Return what `settle` wants to know: lines in a piece of JSONL, borders in a WARC file."""
    return _format(piece.file).survey(piece, partition_bytes, settings)


def settle(pieces: list[Piece], surveys: dict[Piece, list[int]]) -> list[Piece]:
    """Return the final pieces, in the order of the files."""
    settled: list[Piece] = []
    for file, group in groupby(pieces, lambda piece: piece.file):
        format_, own = _format(file), list(group)
        settled += format_.settle(own, surveys) if hasattr(format_, "settle") else own
    return settled


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the documents of a piece to `rows`, and count what is none; yields often."""
    return _format(piece.file).read(piece, settings, rows)


def _format(file: InputFile) -> ModuleType:
    return hub if file.path.startswith(hub.PREFIX) else FORMATS[split_suffix(file.path)[1]]
