"""Arrow IPC streams: the files of a data set that `save_to_disk` of datasets wrote, batch by batch."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from data_pipeline.config import InputConfig
from data_pipeline.read import storage
from data_pipeline.read.columns import add_rows, check_offsets, check_text_column
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import Rows
from llama_foundation.errors import DataError

SLICE_ROWS = 256


def cut(file: InputFile, partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """One piece per file; datasets writes files of 500 MB.

    Raises:
        DataError: it is not an Arrow stream, or its text column is missing or not a string.
    """
    with _opened(file.path) as reader:
        if wrong := check_text_column(file.path, reader.schema, settings.text_column):
            raise DataError(wrong)
    return [Piece(file, 0, file.size, 0)]


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the rows of one file to `rows`; yields after each slice of a batch."""
    row = 0
    try:
        with _opened(piece.file.path) as reader:
            wanted = [name for name in dict.fromkeys(settings.columns().values()) if name in reader.schema.names]
            for batch in reader:
                chosen = batch.select(wanted)
                for column in chosen.columns:
                    check_offsets(column)
                for start in range(0, chosen.num_rows, SLICE_ROWS):
                    part = chosen.slice(start, SLICE_ROWS)
                    add_rows(part, row, settings, rows)
                    row += part.num_rows
                    yield
    except (OSError, pa.ArrowException) as error:
        rows.problem(row, "damaged_file", 0, f"arrow: {error}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[pa.ipc.RecordBatchStreamReader]:
    with storage.opened_for_arrow(path) as source:
        try:
            stream = pa.memory_map(source) if isinstance(source, str) else pa.PythonFile(source)
            reader = pa.ipc.open_stream(stream)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as an Arrow stream: {error}") from error
        with stream, reader:
            yield reader
