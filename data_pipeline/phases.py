"""What a worker does with one partition in each phase before the shards: read and judge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.config import InputConfig
from data_pipeline.document import Documents, text_bytes
from data_pipeline.engines.work import Commit, Task, write_blocks
from data_pipeline.read import plan
from data_pipeline.read.rows import Rows
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.stages import STAGES, apply_local
from llama_foundation.errors import DataError

_SLICE_BYTES = 8 * 1024 * 1024  # of text judged at once
_OPTIONAL = ("source", "url", "date", "language", "content_type", "license", "opt_out")


def survey_task(folder: Path, task: Task) -> Commit:
    """Look at the bytes of a piece for what `plan.settle` wants to know: numbers of lines, borders of records."""
    return Commit(notes={"survey": plan.survey(*task.payload)})


def read_task(folder: Path, task: Task) -> Commit:
    """Read one piece of a file into blocks of bounded size."""
    piece, settings, partition_bytes, seed = task.payload
    rows = Rows(piece.file, settings, seed)
    steps = plan.read(piece, settings, rows)

    def tables() -> Iterator[tuple[str, pa.Table]]:
        for _ in steps:
            if rows.bytes >= partition_bytes:
                yield "", rows.take()
        if (table := rows.take()) is not None:
            yield "", table

    blocks = write_blocks(folder / f"{task.name}.arrow", tables())
    return Commit(blocks, [rows.statistics], rows.notes())


def check_columns(notes: list[dict[str, Any]], settings: InputConfig) -> None:
    """Refuse a file of which no row has the text column, and a column setting that no file knows.

    Raises:
        DataError: names the file, its first row, the column and the columns there are.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for note in notes:
        files.setdefault(note["file"], []).append(note)
    for file, pieces in files.items():
        with_rows = [piece for piece in pieces if piece["rows"]]
        if with_rows and all(piece["without_text"] == piece["rows"] for piece in with_rows):
            row, columns = with_rows[0]["first_row"]
            raise DataError(
                f"{file}: row {row} and all others lack the column {settings.text_column!r}; row {row} has "
                f"{', '.join(columns) or 'no columns'}: set input.text_column"
            )
    seen = {column for note in notes for column in note["columns_seen"]}
    for role in _OPTIONAL:
        column = getattr(settings, f"{role}_column")
        if column not in seen and column != getattr(InputConfig(), f"{role}_column"):
            first = next((note for note in notes if note["first_row"]), None)
            where = (
                f"{first['file']} row {first['first_row'][0]} has {', '.join(first['first_row'][1])}" if first else ""
            )
            raise DataError(f"input.{role}_column={column}: no row of any file has this column; {where}")


def local_task(folder: Path, task: Task) -> Commit:
    """Take one block through consecutive local stages; words and lines are split once for all of them."""
    block, stages, seed = task.payload
    statistics = [StageStatistics(name) for name, _ in stages]
    kept = []
    for batch in slices(load_documents(block).batch):
        documents = Documents(batch)
        for (name, settings), counts in zip(stages, statistics, strict=True):
            documents = apply_local(STAGES[name], documents, settings, counts, seed)
        kept.append(documents.batch)
    whole = pa.Table.from_batches(kept).combine_chunks().to_batches()
    return Commit(write_documents(folder / f"{task.name}.arrow", Documents(whole[0])) if whole else [], statistics)


def slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a partition by rows: what is found in a text, such as its words, takes several times its memory."""
    numbers = np.cumsum(text_bytes(batch)) // _SLICE_BYTES
    starts = np.unique(numbers, return_index=True)[1].tolist()
    for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        yield batch.slice(start, end - start)
