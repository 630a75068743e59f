"""Candidates: documents that agree in a band of their signatures, as edges of a graph.

The documents of a band key are chained, the first with each other one of its run, so that the edges grow with the
documents and not with their pairs. A worker chains what it has before it hands on one document for each key, so a key
that every document has costs no bucket more than one row per block.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents
from data_pipeline.dedup import shingles, signatures
from data_pipeline.dedup.characters import folding
from data_pipeline.dedup.components import edge_groups
from data_pipeline.dedup.hashing import text_buffers
from data_pipeline.dedup.shuffle import by_bucket, hash_bucket, read_columns, run_starts
from data_pipeline.dedup.survivors import scopes
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block, Commit, Task, write_blocks
from data_pipeline.report.statistics import StageStatistics

BAND = "band/"
"""Prefix of the groups of documents by key; the groups of edges have none."""


@dataclass(frozen=True)
class Signing:
    """A block whose documents get their band keys."""

    block: Block
    first_number: int  # of its documents in the numbering through all blocks
    settings: object  # minhash.MinHashDedup
    buckets: int


def keys_of(documents: Documents, settings: object) -> tuple[np.ndarray, np.ndarray]:
    """Return uint64 [documents, bands] and the number of shingles, int64 [documents]; without shingles a key is 0."""
    data, offsets = text_buffers(documents.batch["text"])
    multipliers, increments = signatures.permutations(settings.bands * settings.rows)
    scratch = shingles.room(int(np.diff(offsets).max(initial=0)))
    scope = scopes(documents.batch, settings)
    lengths = (settings.words, settings.characters)
    starts, ends = offsets[:-1], offsets[1:]
    table = folding(settings.fold_digits)
    return signatures.band_keys(
        data, starts, ends, scope, table, *lengths, multipliers, increments, settings.rows, scratch
    )


def sign_task(folder: Path, task: Task) -> Commit:
    """Write the edges inside a block, and one document of the block for each band key."""
    signing: Signing = task.payload
    documents = load_documents(signing.block)
    keys, shingle_counts = keys_of(documents, signing.settings)
    signed = np.flatnonzero(shingle_counts)
    numbers = np.repeat(signed + signing.first_number, keys.shape[1])
    keys, numbers, edges = _chain(keys[signed].ravel(), numbers)
    table = pa.table({"key": keys, "number": numbers})
    groups = [*by_bucket(table, hash_bucket(keys, signing.buckets), BAND), *edge_groups(*edges, signing.buckets)]
    blocks = write_blocks(folder / f"{task.name}.arrow", groups, compression=None)
    return Commit(blocks, [StageStatistics(signing.settings.name)], {"shingles": int(shingle_counts.sum())})


def chain_task(folder: Path, task: Task) -> Commit:
    """Chain the documents of a bucket of band keys over all blocks."""
    blocks, buckets, name = task.payload
    keys, numbers = read_columns(blocks, ["key", "number"])
    _, _, edges = _chain(keys, numbers)
    written = write_blocks(folder / f"{task.name}.arrow", edge_groups(*edges, buckets), compression=None)
    return Commit(written, [StageStatistics(name)])


def _chain(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the distinct keys, a document of each, and the edges from it to the others: a star for every key."""
    order = np.argsort(keys)
    keys, numbers = keys[order], numbers[order]
    starts = run_starts(keys)
    centers = np.repeat(numbers[starts], np.diff(np.r_[starts, len(keys)]))
    others = np.ones(len(keys), bool)
    others[starts] = False
    return keys[starts], numbers[starts], (numbers[others], centers[others])
