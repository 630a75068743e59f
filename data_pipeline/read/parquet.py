"""Parquet: one row group at a time, in batches of bounded size."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import InputConfig
from data_pipeline.read import storage
from data_pipeline.read.columns import add_rows, check_text_column
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import Rows
from llama_foundation.errors import DataError

BATCH_ROWS = 256
BATCH_BYTES = 32 * 1024 * 1024


def cut(file: InputFile, partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """One piece per row group.

    Raises:
        DataError: the file is not Parquet, or its text column is missing or not a string.
    """
    with _opened(file.path) as parquet:
        if wrong := check_text_column(file.path, parquet.schema_arrow, settings.text_column):
            raise DataError(wrong)
        pieces, first = [], 0
        for index in range(parquet.metadata.num_row_groups):
            pieces.append(Piece(file, index, index + 1, first))
            first += parquet.metadata.row_group(index).num_rows
        return pieces


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the rows of one row group to `rows`; yields after each batch of rows."""
    row, group = piece.first_row, piece.start
    with _opened(piece.file.path) as file:
        names = set(file.schema_arrow.names)
        columns = [name for name in dict.fromkeys(settings.columns().values()) if name in names]
        size = file.metadata.row_group(group)
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * size.num_rows // max(size.total_byte_size, 1)))
        try:
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns):
                add_rows(batch, row, settings, rows)
                row += batch.num_rows
                yield
        except (OSError, pa.ArrowException) as error:
            rows.problem(row, "damaged_file", 0, f"row group {group}: {error}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    with storage.opened_for_arrow(path) as source:
        try:
            file = pq.ParquetFile(source)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
        with file:
            yield file
