"""The phases between candidates and decisions: shingle sets to where their component is, and a verdict on each."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents
from data_pipeline.dedup.bands import keys_of
from data_pipeline.dedup.by_key import decide
from data_pipeline.dedup.characters import folding
from data_pipeline.dedup.clusters import cluster
from data_pipeline.dedup.components import star_labels
from data_pipeline.dedup.hashing import id_halves, mix_array, text_buffers
from data_pipeline.dedup.shingles import shingle_sets
from data_pipeline.dedup.shuffle import by_bucket, hash_bucket, read_columns
from data_pipeline.dedup.survivors import by_block, rank
from data_pipeline.engines.work import Block, Commit, Task, read_block, write_blocks
from data_pipeline.report.statistics import StageStatistics

SPILL_BYTES = 512 * 1024 * 1024
"""A bucket with more bytes of shingles than this is read through a file on disk instead of in memory."""


@dataclass(frozen=True)
class Gathering:
    """A block of which the documents in candidate components go to where their component is judged."""

    block: Block
    number: int
    labels: tuple[Block, ...]
    settings: object  # minhash.MinHashDedup
    buckets: int


def label_task(folder: Path, task: Task) -> Commit:
    """Hand the labels of a bucket of stars to the blocks that their documents are in."""
    blocks, first_numbers = task.payload
    nodes, labels = star_labels(blocks)
    block = np.searchsorted(first_numbers, nodes, side="right") - 1
    table = pa.table({"row": nodes - first_numbers[block], "component": labels})
    return Commit(write_blocks(folder / f"{task.name}.arrow", by_bucket(table, block)))


def gather_task(folder: Path, task: Task) -> Commit:
    """Write rank, band keys and shingle sets of the documents of a block that are candidates."""
    gathering: Gathering = task.payload
    settings = gathering.settings
    rows, components = read_columns(list(gathering.labels), ["row", "component"])
    bucket = hash_bucket(mix_array(components.astype(np.uint64)), gathering.buckets)
    order = np.argsort(bucket, kind="stable")
    rows, components, bucket = rows[order], components[order], bucket[order]
    documents = load_documents(gathering.block)
    documents = type(documents)(documents.batch.take(pa.array(rows)))
    keys, _ = keys_of(documents, settings)
    table = rank(documents, settings).append_column("component", pa.array(components))
    table = table.append_column("copies", documents.batch["copies"])
    table = table.append_column("block", pa.array(np.full(len(rows), gathering.number)))
    table = table.append_column("row", pa.array(rows))
    table = table.append_column("keys", pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), keys.shape[1]))
    offsets, values = np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.uint64)
    if settings.min_jaccard > 0:
        data, places = text_buffers(documents.batch["text"])
        lengths = (settings.words, settings.characters)
        offsets, values = shingle_sets(data, places[:-1], places[1:], folding(settings.fold_digits), *lengths)
    table = table.append_column("shingles", pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))
    groups = by_bucket(table, bucket)
    return Commit(
        write_blocks(folder / f"{task.name}.arrow", groups, compression=None), [StageStatistics(settings.name)]
    )


def verify_task(folder: Path, task: Task) -> Commit:
    """Cluster the candidates of a bucket and decide who stays."""
    _, blocks, settings = task.payload
    with tempfile.TemporaryFile(dir=folder) as spill:
        table, offsets, shingles = _load(blocks, spill)
        halves = id_halves(table["record_id"].combine_chunks())
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        keys = table["keys"].combine_chunks().flatten().to_numpy().reshape(len(order), -1)[order]
        labels, compared, verified = cluster(
            keys, (offsets[0][order], offsets[1][order]), shingles, settings.min_jaccard, settings.window
        )
    table = table.drop_columns(["keys"]).take(pa.array(order)).append_column("key", pa.array(labels))
    decisions, sizes = decide(table)
    statistics = StageStatistics(settings.name)
    statistics.cluster_sizes = {str(size): count for size, count in sorted(sizes.items())}
    statistics.pairs = {
        "candidate_documents": len(labels),
        "candidate_components": len(np.unique(table["component"].to_numpy())),
        "compared_pairs": compared,
        "verified_pairs": verified,
    }
    return Commit(write_blocks(folder / f"{task.name}.arrow", by_block(decisions)), [statistics])


def _load(blocks: list[Block], spill: object) -> tuple[pa.Table, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the rows of all blocks without their shingles, where the shingles of each begin and end, and them.

    Shingles of more than SPILL_BYTES are copied to the file `spill`, a block at a time, and mapped from there.
    """
    tables, starts, ends, values = [], [], [], []
    used = 0
    spilling = sum(block.length for block in blocks) > SPILL_BYTES
    for block in blocks:
        table = read_block(block).combine_chunks()
        lists = table["shingles"].combine_chunks()
        offsets = lists.offsets.to_numpy()
        starts.append(offsets[:-1] + (used - offsets[0]))
        ends.append(offsets[1:] + (used - offsets[0]))
        found = lists.values.to_numpy()[offsets[0] : offsets[-1]]
        used += len(found)
        if spilling:
            found.tofile(spill)
        else:
            values.append(found)
        tables.append(table.drop_columns(["shingles"]))
    if spilling and used:
        spill.flush()
        shingles = np.asarray(np.memmap(spill, np.uint64, "r", shape=(used,)))
    else:
        shingles = np.concatenate(values) if values else np.zeros(0, np.uint64)
    return pa.concat_tables(tables), (np.concatenate(starts), np.concatenate(ends)), shingles
