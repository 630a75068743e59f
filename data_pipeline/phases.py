"""What a worker does with one partition in each phase before the shards: read, judge, find and drop duplicates."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.config import InputConfig
from data_pipeline.document import Documents, text_bytes
from data_pipeline.engines.work import Block, Commit, Task, read_block, write_blocks
from data_pipeline.read import plan
from data_pipeline.read.rows import Rows
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.stages import STAGES, apply_local, drop
from llama_foundation.errors import DataError

_SLICE_BYTES = 2 * 1024 * 1024  # of text judged at once
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
    for batch in _slices(_documents(block).batch):
        documents = Documents(batch)
        for (name, settings), counts in zip(stages, statistics, strict=True):
            documents = apply_local(STAGES[name], documents, settings, counts, seed)
        kept.append(documents.batch)
    return Commit(_write(folder, task, pa.Table.from_batches(kept)), statistics)


def keys_task(folder: Path, task: Task) -> Commit:
    """Write the keys of one block, grouped by bucket, with the place each came from."""
    block, number, name, settings, buckets = task.payload
    table = STAGES[name].keys(_documents(block), settings)
    table = table.append_column("block", pa.array(np.full(table.num_rows, number), pa.int64()))
    table = table.append_column("row", pa.array(np.arange(table.num_rows), pa.int64()))
    bucket = np.array([int.from_bytes(key[:8], "little") % buckets for key in table["key"].to_pylist()])
    groups = ((f"{each}", table.filter(pa.array(bucket == each))) for each in np.unique(bucket).tolist())
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups))


def losers_task(folder: Path, task: Task) -> Commit:
    """Decide one bucket of keys; write the rows to drop, grouped by the block they are in."""
    name, _, blocks = task.payload
    table = pa.concat_tables([read_block(block) for block in blocks])
    dropped, sizes = STAGES[name].losers(table)
    statistics = StageStatistics(name)
    statistics.cluster_sizes = {str(size): count for size, count in sorted(sizes.items())}
    losers = table.select(["block", "row"]).filter(pa.array(dropped)).sort_by([("block", "ascending")])
    numbers, starts = np.unique(losers["block"].to_numpy(), return_index=True)
    ends = [*starts[1:].tolist(), losers.num_rows][: len(starts)]
    groups = (
        (str(number), losers.slice(start, end - start).select(["row"]))
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True)
    )
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [statistics])


def drop_task(folder: Path, task: Task) -> Commit:
    """Drop the losers of one block."""
    block, name, losers, seed = task.payload
    documents = _documents(block)
    reasons: list[str | None] = [None] * len(documents)
    for each in losers:
        for row in read_block(each)["row"].to_pylist():
            reasons[row] = STAGES[name].reason
    statistics = StageStatistics(name)
    kept = drop(documents, documents, reasons, statistics, seed)
    return Commit(_write(folder, task, pa.Table.from_batches([kept.batch])), [statistics])


def _documents(block: Block) -> Documents:
    return Documents(read_block(block).combine_chunks().to_batches()[0])


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a partition by rows: its words as Python strings would take ten times the memory of its text."""
    numbers = np.cumsum(text_bytes(batch)) // _SLICE_BYTES
    starts = np.unique(numbers, return_index=True)[1].tolist()
    for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        yield batch.slice(start, end - start)


def _write(folder: Path, task: Task, table: pa.Table) -> list[Block]:
    return write_blocks(folder / f"{task.name}.arrow", [("", table.combine_chunks())]) if table.num_rows else []
