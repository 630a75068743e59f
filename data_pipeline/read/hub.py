"""Data sets of the Hugging Face hub by name, streamed at a pinned commit; needs a network.

Each shard of the set (one of its files, as `datasets` cuts it) is a piece of its own, and rows count from 0 in each.
"""

from collections.abc import Iterator
from typing import Any

from data_pipeline.config import DatasetConfig, InputConfig
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import Rows
from llama_foundation.errors import DataError, RunError

PREFIX = "hub:"


def shards(dataset: DatasetConfig) -> list[str]:
    """Return one name per shard: hub:NAME@REVISION/CONFIG/SPLIT#SHARD-of-SHARDS.

    Raises:
        DataError: the hub does not give the data set.
    """
    place = f"{dataset.name}@{dataset.revision}/{dataset.config or 'default'}/{dataset.split}"
    count = _load(dataset).num_shards
    return [f"{PREFIX}{place}#{index}-of-{count}" for index in range(count)]


def cut(file: InputFile, partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """Return one piece: a shard is what the hub gives at once."""
    return [Piece(file, 0, 0, 0)]


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the records of one shard to `rows`; yields after each."""
    index, count = map(int, piece.file.path.rsplit("#", 1)[1].split("-of-"))
    stream = _load(settings.dataset)
    if stream.num_shards != count:
        raise DataError(f"{piece.file.path} has {stream.num_shards} shards now; the hub gave another data set")
    records = iter(stream.shard(count, index))
    row = 0
    while (record := _next(records, piece)) is not None:
        text = record.get(settings.text_column)
        size = len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
        if size > settings.max_record_bytes:
            rows.problem(row, "record_too_long", size, f"a text of {size:,} bytes")
        else:
            rows.add(row, record, size)
        row += 1
        yield


def _next(records: Iterator[dict[str, Any]], piece: Piece) -> dict[str, Any] | None:
    try:
        return next(records, None)
    except Exception as error:  # of the network, of a decoder: `datasets` has asked again already
        raise RunError(
            f"{piece.file.path}: {type(error).__name__}: {error}; finished partitions are kept: run the same command "
            "again"
        ) from error


def _load(dataset: DatasetConfig) -> Any:
    import datasets  # takes a second, and only this kind of input needs it

    try:
        return datasets.load_dataset(
            dataset.name, dataset.config, split=dataset.split, revision=dataset.revision, streaming=True
        )
    except Exception as error:  # `datasets` lets through what its parts raise
        raise DataError(
            f"input.dataset.name={dataset.name}, revision {dataset.revision}, config {dataset.config}, split "
            f"{dataset.split} cannot be opened: {type(error).__name__}: {error}"
        ) from error
