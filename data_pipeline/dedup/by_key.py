"""Deduplication by a key: of all documents with the same key in a scope, one stays."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.batches import load_documents
from data_pipeline.chain import Chain, block_label, bucket_count
from data_pipeline.dedup.survivors import DECISION_SCHEMA, KeepOrder, by_block, rank, sort_keys, take_out
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, read_block, write_blocks
from data_pipeline.report.statistics import StageStatistics

KeyFunction = Callable[[Documents], pa.Array]
"""Returns binary(16) [documents]: equal for copies, null for a document that has no copies."""


def deduplicate(
    chain: Chain, name: str, version: int, key: KeyFunction, order: KeepOrder, blocks: list[Block]
) -> tuple[list[Block], list[StageStatistics]]:
    """Keep the best document of every key; memory per worker is bounded by the keys of a bucket."""
    buckets = bucket_count(blocks)
    payloads = [(block, number, key, order, buckets) for number, block in enumerate(blocks)]
    commits = chain.phase(f"{name}.keys", [version, plain(order), buckets], _keys_task, payloads, block_label)
    grouped = [(name, bucket, found) for bucket, found in sorted(group_blocks(commits).items())]
    decided = chain.phase(f"{name}.survivors", None, _survivors_task, grouped, lambda payload: f"bucket {payload[1]}")
    return take_out(chain, name, "duplicate", blocks, decided)


def plain(order: Any) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return {key: getattr(value, "value", value) for key, value in asdict(order).items()}


def _keys_task(folder: Path, task: Task) -> Commit:
    """Write key and rank of every document, grouped by bucket, with the place each came from."""
    block, number, key, order, buckets = task.payload
    documents = load_documents(block)
    table = rank(documents, order)
    table = table.append_column("key", key(documents))
    table = table.append_column("copies", documents.batch["copies"])
    table = table.append_column("block", pa.array(np.full(table.num_rows, number), pa.int64()))
    table = table.append_column("row", pa.array(np.arange(table.num_rows), pa.int64()))
    table = table.filter(table["key"].is_valid())
    bucket = np.array([int.from_bytes(each[:8], "little") % buckets for each in table["key"].to_pylist()], np.int64)
    groups = ((str(each), table.filter(pa.array(bucket == each))) for each in np.unique(bucket).tolist())
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups))


def _survivors_task(folder: Path, task: Task) -> Commit:
    name, _, blocks = task.payload
    decisions, sizes = decide(pa.concat_tables([read_block(block) for block in blocks]))
    statistics = StageStatistics(name)
    statistics.cluster_sizes = {str(size): count for size, count in sorted(sizes.items())}
    return Commit(write_blocks(folder / f"{task.name}.arrow", by_block(decisions)), [statistics])


def decide(table: pa.Table) -> tuple[pa.Table, Counter[int]]:
    """Decide a bucket.

    Args:
        table: RANK_SCHEMA, key, copies, block and row, with every document of each key that occurs in it.

    Returns:
        DECISION_SCHEMA of the documents that have copies; and how many clusters there are of each size above 1.
    """
    table = table.sort_by([("key", "ascending"), ("scope", "ascending"), *sort_keys(table)])
    changed = np.ones(table.num_rows, bool)
    key, scope = (table[name].combine_chunks() for name in ("key", "scope"))
    if table.num_rows > 1:
        changed[1:] = pc.or_(pc.not_equal(key[1:], key[:-1]), pc.not_equal(scope[1:], scope[:-1])).to_numpy(False)
    first, inverse = np.flatnonzero(changed), np.cumsum(changed) - 1
    counts = np.bincount(inverse, minlength=len(first))
    place = np.arange(table.num_rows)
    copies = np.bincount(inverse, weights=table["copies"].to_numpy(), minlength=len(first)).astype(np.int64)
    record_ids = table["record_id"].take(pa.array(first[inverse]))
    decisions = pa.table(
        [table["block"], table["row"], pa.array(place != first[inverse]), record_ids, pa.array(copies[inverse])],
        schema=DECISION_SCHEMA,
    )
    return decisions.filter(pa.array(counts[inverse] > 1)), Counter(counts[counts > 1].tolist())
