"""Rows on their way to buckets, and documents by number: what the phases of a global stage have in common."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data_pipeline.engines.work import Block, read_block


def by_bucket(table: pa.Table, buckets: np.ndarray, prefix: str = "") -> Iterator[tuple[str, pa.Table]]:
    """Yield (bucket, its rows in their order) in the form that `write_blocks` takes.

    Args:
        buckets: int64 [rows].
        prefix: stands before the number in the name of the group.
    """
    if not len(buckets):
        return
    if buckets.min() != buckets.max():
        order = np.argsort(buckets, kind="stable")
        table, buckets = table.take(pa.array(order)), buckets[order]
    starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(buckets)], strict=True):
        yield f"{prefix}{buckets[start]}", table.slice(start, end - start)


def hash_bucket(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Return int64 [rows]: which of `buckets` equal ranges of 64-bit hashes (uint64 [rows]) each one lies in."""
    return ((hashes >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def read_columns(blocks: list[Block], names: list[str]) -> list[np.ndarray]:
    """Return the rows of all blocks as one array per column; empty ones where there are no blocks."""
    if not blocks:
        return [np.zeros(0, np.int64) for _ in names]
    tables = [read_block(block) for block in blocks]
    return [np.concatenate([table[name].to_numpy() for table in tables]) for name in names]


def first_numbers(blocks: list[Block]) -> np.ndarray:
    """Return int64 [blocks + 1]: documents are numbered through all blocks, and here each block begins."""
    return np.cumsum([0, *(block.rows for block in blocks)])


def run_starts(values: np.ndarray) -> np.ndarray:
    """Return where runs of equal values begin in a sorted array."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
