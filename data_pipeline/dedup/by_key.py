"""Deduplication by a key: of all documents with the same key in a scope, one stays."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.batches import load_documents
from data_pipeline.chain import Chain, bucket_count
from data_pipeline.dedup.hashing import id_halves
from data_pipeline.dedup.shuffle import by_bucket, hash_bucket
from data_pipeline.dedup.survivors import DECISION_SCHEMA, KeepOrder, by_block, plain, rank, sort_keys, take_out
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
    payloads = [(name, block, number, key, order, buckets) for number, block in enumerate(blocks)]
    commits = chain.phase(f"{name}.keys", [version, plain(order), buckets], _keys_task, payloads, _label)
    grouped = [(name, bucket, found) for bucket, found in sorted(group_blocks(commits).items())]
    decided = chain.phase(f"{name}.survivors", None, _survivors_task, grouped, lambda payload: f"bucket {payload[1]}")
    return take_out(chain, name, "duplicate", blocks, decided, commits)


def _keys_task(folder: Path, task: Task) -> Commit:
    """Write key and rank of every document, grouped by bucket, with the place each came from."""
    name, block, number, key, order, buckets = task.payload
    documents = load_documents(block)
    keys = key(documents)
    table = rank(documents, order)
    table = table.append_column("key", keys)
    table = table.append_column("copies", documents.batch["copies"])
    table = table.append_column("block", pa.array(np.full(table.num_rows, number), pa.int64()))
    table = table.append_column("row", pa.array(np.arange(table.num_rows), pa.int64()))
    bucket = hash_bucket(id_halves(keys)[:, 0], buckets)
    if keys.null_count:
        keyed = keys.is_valid()
        table, bucket = table.filter(keyed), bucket[keyed.to_numpy(zero_copy_only=False)]
    return Commit(write_blocks(folder / f"{task.name}.arrow", by_bucket(table, bucket)), [StageStatistics(name)])


def _survivors_task(folder: Path, task: Task) -> Commit:
    name, _, blocks = task.payload
    decisions, sizes = decide(pa.concat_tables([read_block(block) for block in blocks]))
    statistics = StageStatistics(name)
    statistics.cluster_sizes = {str(size): count for size, count in sorted(sizes.items())}
    return Commit(write_blocks(folder / f"{task.name}.arrow", by_block(decisions)), [statistics])


def decide(table: pa.Table) -> tuple[pa.Table, Counter[int]]:
    """Decide a bucket.

    Args:
        table: RANK_SCHEMA, key (binary(16) or int64), copies, block and row, with every document of each key that
            occurs in it.

    Returns:
        DECISION_SCHEMA of the documents that have copies; and how many clusters there are of each size above 1.
    """
    table = table.take(pa.array(np.flatnonzero(_may_have_copies(table["key"].combine_chunks()))))
    table = table.sort_by([("key", "ascending"), ("scope", "ascending"), *sort_keys(table)])
    changed = np.ones(table.num_rows, bool)
    key, scope = (table[name].combine_chunks() for name in ("key", "scope"))
    if table.num_rows > 1:
        changed[1:] = pc.or_(pc.not_equal(key[1:], key[:-1]), pc.not_equal(scope[1:], scope[:-1])).to_numpy(False)
    first, inverse = np.flatnonzero(changed), np.cumsum(changed) - 1
    counts = np.bincount(inverse, minlength=len(first))
    place = np.arange(table.num_rows)
    copies = np.zeros(len(first), np.int64)
    np.add.at(copies, inverse, table["copies"].to_numpy())
    record_ids = table["record_id"].take(pa.array(first[inverse]))
    decisions = pa.table(
        [table["block"], table["row"], pa.array(place != first[inverse]), record_ids, pa.array(copies[inverse])],
        schema=DECISION_SCHEMA,
    )
    return decisions.filter(pa.array(counts[inverse] > 1)), Counter(counts[counts > 1].tolist())


def _may_have_copies(keys: pa.Array) -> np.ndarray:
    """Return bool [rows], false where the key (or half of it) occurs once: most rows, which need no sorting."""
    values = id_halves(keys)[:, 0] if pa.types.is_fixed_size_binary(keys.type) else keys.to_numpy()
    order = np.argsort(values)
    same = values[order][1:] == values[order][:-1]
    found = np.zeros(len(values), bool)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found


def _label(payload: tuple) -> str:
    return payload[1].path
