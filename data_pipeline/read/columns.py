"""Rows of Arrow batches."""

from collections.abc import Iterator

import pyarrow as pa

from data_pipeline.config import InputConfig
from data_pipeline.read.rows import Rows


def add_rows(batch: pa.RecordBatch, first_row: int, settings: InputConfig, rows: Rows) -> None:
    """Add the rows of a batch to `rows`; a text of more than `max_record_bytes` is counted instead."""
    for row, record in enumerate(_records(batch), first_row):
        size = len(record[settings.text_column] or b"")
        if size > settings.max_record_bytes:
            rows.problem(row, "record_too_long", size, f"a text of {size:,} bytes")
        else:
            rows.add(row, record, size)


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


def check_offsets(column: pa.Array) -> None:
    """Check that no value lies outside of the column's bytes: an Arrow file is used as it stands.

    Text is looked at as bytes: one value of invalid UTF-8 spoils only itself.

    Raises:
        ArrowInvalid: one does.
    """
    if pa.types.is_dictionary(column.type):
        column.indices.validate(full=True)
        check_offsets(column.dictionary)
        pa.DictionaryArray.from_arrays(column.indices, column.dictionary)  # an index without a value is refused
        return
    as_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    (column.view(as_bytes[column.type]) if column.type in as_bytes else column).validate(full=True)


def check_text_column(path: str, schema: pa.Schema, column: str) -> str | None:
    """Return what is wrong with the text column of a table, or None."""
    if column not in schema.names:
        return (
            f"{path}: row 0 and all others lack the column {column!r}; the file has {', '.join(schema.names)}: "
            "set input.text_column"
        )
    if not _is_text(schema.field(column).type):
        return f"{path}: column {column!r} is {schema.field(column).type}, not a string: set input.text_column"
    return None
