"""Parquet: one row group at a time, in batches of bounded size."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import InputConfig
from data_pipeline.read.rows import Rows
from llama_foundation.errors import DataError

BATCH_ROWS = 256


def row_groups(path: Path, settings: InputConfig) -> list[tuple[int, int]]:
    """Return (first row, rows) of every row group.

    Raises:
        DataError: the file is not Parquet, or its text column is missing or not a string.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        if settings.text_column not in schema.names:
            raise DataError(
                f"{path}: row 0 and all others lack the column {settings.text_column!r}; "
                f"the file has {', '.join(schema.names)}: set input.text_column"
            )
        kind = schema.field(settings.text_column).type
        if not _is_text(kind):
            raise DataError(f"{path}: column {settings.text_column!r} is {kind}, not a string: set input.text_column")
        groups, first = [], 0
        for index in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            groups.append((first, rows))
            first += rows
        return groups


def read(path: Path, group: int, first_row: int, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the rows of one row group to `rows`; yields after each batch of rows."""
    row = first_row
    with _opened(path) as file:
        names = set(file.schema_arrow.names)
        columns = [name for name in dict.fromkeys(settings.columns().values()) if name in names]
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=columns):
                for record in _records(batch):
                    text = record[settings.text_column]
                    rows.add(row, record, len(text) if text else 0)
                    row += 1
                yield
        except (OSError, pa.ArrowException) as error:
            rows.problem(row, "damaged_file", 0, f"row group {group}: {error}")


def _records(batch: pa.RecordBatch) -> Iterator[dict]:
    """Yield the rows; text comes as bytes, so that one value of invalid UTF-8 spoils only itself."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        columns[name] = (column.cast(pa.large_binary()) if _is_text(column.type) else column).to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        yield file
