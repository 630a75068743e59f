"""WAT: what a crawl notes about its pages (headers, links) beside the WARC that holds them.

There is no text in it, and a glob over a crawl's folder easily takes it along: the file is left unread, and counted as
one record that was dropped with its reason.
"""

from collections.abc import Iterator

from data_pipeline.config import InputConfig
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import Rows

REASON = "wat_holds_no_text"


def cut(file: InputFile, partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """Return the whole file."""
    return [Piece(file, 0, file.size, 0)]


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Count the file; nothing of it is read."""
    rows.problem(0, REASON, piece.file.size, "metadata of a crawl; the pages are in its WARC, their text in its WET")
    yield
