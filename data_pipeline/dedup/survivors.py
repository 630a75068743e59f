"""Whom of several copies to keep, and taking the others out: what all deduplications have in common.

The one that stays is the smallest by (already published, source priority, preference, record id). That order depends
on the documents alone, so the survivors are the same for any number of workers and any cut of the input.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.counting import count_batch
from data_pipeline.dedup.shuffle import by_bucket
from data_pipeline.document import Documents, text_bytes
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, read_block, total_statistics
from data_pipeline.filters.measure import KEEP, Measurement
from data_pipeline.report.statistics import StageStatistics


class Scope(Enum):
    """Copies are looked for among the documents of ..."""

    corpus = "corpus"  # ... everything
    source = "source"  # ... the same source
    dump = "dump"  # ... the same crawl, as the file's path names it (KeepOrder.dump_pattern)


class Prefer(Enum):
    """Of copies with the same source priority, keep ..."""

    nothing = "nothing"  # ... the smallest record id
    newest = "newest"  # ... the greatest date, compared as text (ISO 8601)
    longest = "longest"  # ... the text with the most bytes
    best_score = "best_score"  # ... the highest value of the column `score`


@dataclass
class KeepOrder:
    """Which copies compete, and which of them stays."""

    scope: Scope = Scope.corpus
    source_priority: list[str] = field(default_factory=list)  # best first; sources not named come after, as equals
    prefer: Prefer = Prefer.nothing
    score: str | None = None  # <stage>.<score>, for prefer=best_score
    dump_pattern: str = r"CC-MAIN-\d{4}-\d{2}"  # regular expression, searched in the file's path


RANK_SCHEMA = pa.schema(
    [
        ("scope", pa.uint64()),
        ("unpublished", pa.bool_()),
        ("priority", pa.int32()),
        ("preference", pa.binary()),  # smaller is better
        ("record_id", pa.binary(16)),
    ]
)


def rank(documents: Documents, order: KeepOrder) -> pa.Table:
    """Return RANK_SCHEMA, one row per document: its scope as a hash, and its place in the order of who stays."""
    batch = documents.batch
    priorities = pc.index_in(batch["source"], pa.array(order.source_priority, batch["source"].type))
    return pa.table(
        [
            pa.array(scopes(batch, order)),
            pc.invert(batch["published"]),
            priorities.fill_null(len(order.source_priority)),
            _preferences(batch, order),
            batch["record_id"],
        ],
        schema=RANK_SCHEMA,
    )


def sort_keys(table: pa.Table) -> list[tuple[str, str]]:
    """Return the columns of RANK_SCHEMA for Table.sort_by, best first; the scope is not among them."""
    return [(name, "ascending") for name in ("unpublished", "priority", "preference", "record_id")]


def scopes(batch: pa.RecordBatch, order: KeepOrder) -> np.ndarray:
    """Return uint64 [documents]: a hash of the scope in which each one's copies are looked for."""
    if order.scope is Scope.corpus:
        return np.zeros(batch.num_rows, np.uint64)
    column = batch["source" if order.scope is Scope.source else "file"].dictionary_encode()
    names = column.dictionary.to_pylist()
    if order.scope is Scope.dump:
        pattern = re.compile(order.dump_pattern)
        names = [match.group() if (match := pattern.search(file)) else "" for file in names]
    hashes = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)
    return hashes[column.indices.to_numpy(zero_copy_only=False)]


def plain(settings: Any) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return {key: getattr(value, "value", value) for key, value in asdict(settings).items()}


def _preferences(batch: pa.RecordBatch, order: KeepOrder) -> pa.Array:
    """Return binary [documents] that sorts ascending from best to worst; a document without the value comes last."""
    if order.prefer is Prefer.nothing:
        return pa.repeat(pa.scalar(b"", pa.binary()), batch.num_rows)
    if order.prefer is Prefer.newest:
        dates = batch["date"].to_pylist()
        found = [b"\xff" if date is None else bytes(255 - byte for byte in date.encode()) + b"\xfe" for date in dates]
    elif order.prefer is Prefer.longest:
        found = [int(2**63 - size).to_bytes(8, "big") for size in text_bytes(batch).tolist()]
    else:
        scores = batch[order.score].to_numpy(zero_copy_only=False).astype(np.float64)
        found = [b"\xff" if np.isnan(score) else _descending(score) for score in scores]
    return pa.array(found, pa.binary())


def _descending(value: float) -> bytes:
    """Return 8 bytes that sort as the negated float does (IEEE 754 total order)."""
    bits = int(np.float64(-value).view(np.uint64))
    return (bits ^ (2**64 - 1 if bits >> 63 else 2**63)).to_bytes(8, "big")


DECISION_SCHEMA = pa.schema(
    [
        ("block", pa.int64()),
        ("row", pa.int64()),
        ("dropped", pa.bool_()),
        ("cluster", pa.binary(16)),
        ("copies", pa.int64()),
    ]
)
"""One row per document that has copies: where it is, and what became of it. `copies` counts the whole cluster."""


def by_block(decisions: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield (block number, its decisions) in the form that `write_blocks` takes."""
    decisions = decisions.sort_by([("block", "ascending"), ("row", "ascending")])
    return by_bucket(decisions, decisions["block"].to_numpy())


def take_out(
    chain: Chain, name: str, reason: str, blocks: list[Block], decided: list[Commit], before: Sequence[Commit] = ()
) -> tuple[list[Block], list[StageStatistics]]:
    """Drop what was decided; survivors get their cluster and its number of copies.

    Args:
        decided: commits whose blocks hold DECISION_SCHEMA, grouped by the number of the block they are about.
        before: commits of earlier phases whose statistics belong to the stage.
    """
    decisions = group_blocks(decided)
    payloads = [
        (block, name, reason, decisions.get(str(number), []), chain.seed) for number, block in enumerate(blocks)
    ]
    commits = chain.phase(name, None, _take_out_task, payloads, block_label)
    return all_blocks(commits), total_statistics([*commits, *decided, *before], [name])


def _take_out_task(folder: Path, task: Task) -> Commit:
    block, name, reason, decided, seed = task.payload
    documents = load_documents(block)
    verdicts = np.full(len(documents), KEEP, np.int64)
    marked = documents
    if decided:
        decisions = pa.concat_tables([read_block(each) for each in decided])
        rows = decisions["row"].to_numpy()
        verdicts[rows[decisions["dropped"].to_numpy()]] = 0
        copies = documents.batch["copies"].to_numpy().copy()
        copies[rows] = decisions["copies"].to_numpy()
        place = np.full(len(documents), -1, np.int64)
        place[rows] = np.arange(len(rows))
        clusters = decisions["cluster"].combine_chunks().take(pa.array(place, mask=place < 0))
        clusters = pc.coalesce(clusters, documents.batch["cluster"])
        marked = documents.with_columns({"cluster": clusters, "copies": pa.array(copies)})
    kept = marked.select(verdicts == KEEP)
    statistics = StageStatistics(name)
    count_batch(statistics, documents, kept, verdicts, [reason], Measurement({}), [], seed)
    return Commit(write_documents(folder / f"{task.name}.arrow", kept), [statistics])
