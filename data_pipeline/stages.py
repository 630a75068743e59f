"""What a stage is, and which ones there are.

A local stage looks at one document at a time. A global stage compares documents: it gives every document a key, sees
all rows of a key together, and says which to drop. Both carry a VERSION that rises with every change of what they
keep or write, because finished work is reused as long as it stays the same.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.dedup import exact
from data_pipeline.document import Documents, keyed_hashes, text_bytes
from data_pipeline.filters import c4, fineweb, gopher_quality, gopher_repetition
from data_pipeline.filters.verdict import Judgement
from data_pipeline.report.statistics import EXAMPLE_CHARACTERS, StageStatistics


@dataclass(frozen=True)
class LocalStage:
    """`judge(documents, settings)` decides each row of a batch on its own."""

    version: int
    judge: Callable[[Documents, Any], Judgement]


@dataclass(frozen=True)
class GlobalStage:
    """`keys` gives one row per document with `key` and `record_id`; `losers` sees all rows of a key and decides."""

    version: int
    reason: str
    keys: Callable[[Documents, Any], pa.Table]
    losers: Callable[[pa.Table], tuple[np.ndarray, Counter[int]]]


STAGES: dict[str, LocalStage | GlobalStage] = {
    gopher_quality.NAME: LocalStage(gopher_quality.VERSION, gopher_quality.judge),
    gopher_repetition.NAME: LocalStage(gopher_repetition.VERSION, gopher_repetition.judge),
    c4.NAME: LocalStage(c4.VERSION, c4.judge),
    fineweb.NAME: LocalStage(fineweb.VERSION, fineweb.judge),
    exact.NAME: GlobalStage(exact.VERSION, exact.REASON, exact.keys, exact.losers),
}
"""Every stage that a preset can list, and the settings of each are `PipelineConfig.<name>`."""


def apply_local(
    stage: LocalStage, documents: Documents, settings: Any, statistics: StageStatistics, seed: int
) -> Documents:
    """Judge a batch; return the documents that stay, edited and with their scores, and count the others."""
    started = time.process_time_ns()
    judgement = stage.judge(documents, settings)
    assert len(judgement.reasons) == len(documents)
    edited = documents.with_texts(judgement.texts).with_scores(judgement.scores)
    for mine, theirs in (
        (statistics.abstained, judgement.abstained),
        (statistics.removed_lines, judgement.removed_lines),
    ):
        for rule, number in theirs.items():
            mine[rule] = mine.get(rule, 0) + number
    kept = drop(documents, edited, judgement.reasons, statistics, seed)
    statistics.cpu_milliseconds += (time.process_time_ns() - started) // 1_000_000
    return kept


def drop(
    before: Documents, after: Documents, reasons: list[str | None], statistics: StageStatistics, seed: int
) -> Documents:
    """Return the rows of `after` without a reason; count all rows, and take examples of those with one."""
    batch = before.batch
    sources = batch["source"].to_pylist()
    languages = batch["language"].to_pylist()
    sizes = text_bytes(batch).tolist()
    for row, (source, language, reason) in enumerate(zip(sources, languages, reasons, strict=True)):
        statistics.count(statistics.seen, source, language, sizes[row])
        if reason is not None:
            statistics.count(statistics.dropped, source, reason, sizes[row])
    keep = np.array([reason is None for reason in reasons], bool)
    _take_examples(batch, np.flatnonzero(~keep), reasons, statistics, seed)
    kept = after.select(keep)
    columns = (kept.batch["source"].to_pylist(), kept.batch["language"].to_pylist(), text_bytes(kept.batch).tolist())
    for source, language, size in zip(*columns, strict=True):
        statistics.count(statistics.kept, source, language, size)
    return kept


def _take_examples(
    batch: pa.RecordBatch, rows: np.ndarray, reasons: list[str | None], statistics: StageStatistics, seed: int
) -> None:
    record_ids = batch["record_id"].take(pa.array(rows)).to_pylist()
    hashes = keyed_hashes(record_ids, "example", seed).tolist()
    for row, record_id, hash_ in zip(rows.tolist(), record_ids, hashes, strict=True):
        if not statistics.wants_example(reasons[row], hash_):
            continue
        record = {name: batch[name][row].as_py() for name in ("source", "file", "row", "language")}
        text = batch["text"][row].as_py()[:EXAMPLE_CHARACTERS]
        statistics.example(reasons[row], {"hash": hash_, "record_id": record_id.hex(), **record, "text": text})
