"""Lines that are seen too often are removed from all documents: menus, notices, boilerplate.

The default is Llama 3's rule (Llama Team 2024, section 3.1.1): a line seen more than 6 times among the documents of a
bucket is removed, all of its copies; there a bucket is 30 million documents, here it is hash(record id) mod `buckets`.
Other rules are other settings:

    CCNet, Llama 1 (Wenzek et al. 2020, section 3.2)    folded=true max_seen=1 keep_first=true
    C4 (Raffel et al. 2020, section 2.2)                unit=sentence span=3 max_seen=1 keep_first=true

Memory per worker: one block with about 60 bytes for each of its units, or about 100 bytes for each distinct unit of a
bucket, of which there is one for each 64 MiB of compressed blocks. Published documents are counted, never edited.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.counting import count_batch
from data_pipeline.dedup import units
from data_pipeline.dedup.characters import folding
from data_pipeline.dedup.hashing import id_halves, text_buffers
from data_pipeline.dedup.shuffle import by_bucket, hash_bucket, read_columns, run_starts
from data_pipeline.dedup.survivors import plain
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, total_statistics, write_blocks
from data_pipeline.filters.measure import KEEP, Measurement
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import ConfigError

NAME = "line_dedup"
VERSION = 1

BYTES_PER_BUCKET = 64 * 1024 * 1024


class Unit(Enum):
    """What is counted and removed; `units` says where each ends."""

    line = "line"
    paragraph = "paragraph"
    sentence = "sentence"


@dataclass
class LineDedup:
    """Which lines are the same, and how often one may be seen."""

    unit: Unit = Unit.line
    span: int = 1  # consecutive units that are counted, and removed, together; blank ones do not count
    max_seen: int = 6  # copies among the documents of a bucket
    keep_first: bool = False  # keep one copy, in the document with the smallest record id; false: all copies go
    folded: bool = False  # compare in lower case, digits as 0, without punctuation
    min_characters: int = 1  # a shorter one is neither counted nor removed
    buckets: int = 1  # of documents, by record id; lines are counted in each by itself

    def check(self) -> None:
        for setting, least in (("span", 1), ("max_seen", 1), ("min_characters", 1), ("buckets", 1)):
            if getattr(self, setting) < least:
                raise ConfigError(f"pipeline.{NAME}.{setting}={getattr(self, setting)} must be at least {least}")


def run(chain: Chain, blocks: list[Block], settings: LineDedup) -> tuple[list[Block], list[StageStatistics]]:
    """Remove what is seen too often; drop the documents that this leaves empty."""
    buckets = 1 + sum(block.length for block in blocks) // BYTES_PER_BUCKET
    payloads = [(block, number, settings, buckets) for number, block in enumerate(blocks)]
    counted = chain.phase(f"{NAME}.counts", [VERSION, plain(settings), buckets], _count_task, payloads, block_label)
    payloads = [(found, settings) for _, found in sorted(group_blocks(counted).items())]
    judged = chain.phase(f"{NAME}.totals", None, _total_task, payloads, lambda payload: payload[0][0].path)
    repeated = group_blocks(judged)
    payloads = [(block, repeated.get(str(number), []), settings, chain.seed) for number, block in enumerate(blocks)]
    commits = chain.phase(NAME, None, _remove_task, payloads, block_label)
    return all_blocks(commits), total_statistics([*commits, *counted, *judged], [NAME])


class _Split:
    """The units of a block of documents."""

    def __init__(self, documents: Documents, settings: LineDedup) -> None:
        self.data, places = text_buffers(documents.batch["text"])
        self.starts = places[:-1]
        unit = list(Unit).index(settings.unit)
        halves = id_halves(documents.batch["record_id"])
        split = units.split(self.data, self.starts, places[1:], folding(), unit, settings.folded)
        self.offsets, self.ends, self.hashes, self.sizes = split
        keys = halves[:, 0] % np.uint64(settings.buckets)
        limits = (settings.span, settings.min_characters)
        self.texts, self.spans = units.spans(self.offsets, self.hashes, self.sizes, keys, *limits)
        published = documents.batch["published"].to_numpy(zero_copy_only=False)
        self.order = halves[:, 1] >> np.uint64(1) | (~published).astype(np.uint64) << np.uint64(63)
        self.published = published


def _count_task(folder: Path, task: Task) -> Commit:
    """Count the distinct spans of a block, and note the first document of each."""
    block, number, settings, buckets = task.payload
    split = _Split(load_documents(block), settings)
    order = np.argsort(split.spans)
    spans = split.spans[order]
    starts = run_starts(spans)
    counts = np.diff(np.r_[starts, len(spans)])
    firsts = np.minimum.reduceat(split.order[split.texts[order]], starts) if len(starts) else split.order[:0]
    spans = spans[starts]
    table = pa.table({"span": spans, "count": counts, "first": firsts, "block": np.full(len(spans), number)})
    groups = by_bucket(table, hash_bucket(spans, buckets))
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _total_task(folder: Path, task: Task) -> Commit:
    """Tell each block which of its spans are seen too often, and in which document the first copy is."""
    found, settings = task.payload
    spans, counts, firsts, blocks = read_columns(found, ["span", "count", "first", "block"])
    order = np.argsort(spans, kind="stable")
    spans, blocks = spans[order], blocks[order]
    starts = run_starts(spans)
    runs = np.diff(np.r_[starts, len(spans)])
    repeated = np.repeat(np.add.reduceat(counts[order], starts) > settings.max_seen, runs)
    firsts = np.repeat(np.minimum.reduceat(firsts[order], starts), runs)
    table = pa.table({"span": spans[repeated], "first": firsts[repeated]})
    groups = by_bucket(table, blocks[repeated])
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _remove_task(folder: Path, task: Task) -> Commit:
    """Take repeated spans out of a block."""
    block, found, settings, seed = task.payload
    documents = load_documents(block)
    edited, verdicts, lost = documents, np.full(len(documents), KEEP, np.int64), 0
    if found:
        split = _Split(documents, settings)
        removed = _removed(split, found, settings.keep_first)
        limits = (settings.span, settings.min_characters)
        data, places, lost_units, left = units.take_out_units(
            split.data, split.starts, split.offsets, split.ends, split.sizes, removed, *limits
        )
        texts = pa.LargeStringArray.from_buffers(len(documents), pa.py_buffer(places), pa.py_buffer(data))
        edited = documents.with_columns({"text": texts})
        verdicts[(lost_units > 0) & (left == 0)] = 0
        lost = int(lost_units.sum())
    kept = edited.select(verdicts == KEEP)
    statistics = StageStatistics(NAME)
    measurement = Measurement({}, counts={f"{settings.unit.value}s_removed": lost})
    count_batch(statistics, documents, kept, verdicts, ["empty"], measurement, [], seed)
    return Commit(write_documents(folder / f"{task.name}.arrow", kept), [statistics])


def _removed(split: _Split, found: list[Block], keep_first: bool) -> np.ndarray:
    """Return bool [spans]: which are to be removed."""
    spans, firsts = read_columns(found, ["span", "first"])
    order = np.argsort(spans)
    spans, firsts = spans[order], firsts[order]
    place = np.minimum(np.searchsorted(spans, split.spans), len(spans) - 1)
    removed = (spans[place] == split.spans) & ~split.published[split.texts]
    if keep_first:
        candidates = np.flatnonzero(removed & (firsts[place] == split.order[split.texts]))
        _, first = np.unique(place[candidates], return_index=True)  # the first of equals, and so the first in the text
        removed[candidates[first]] = False
    return removed
