"""Counts what a stage did to a batch: documents and bytes by source, language and reason, and examples."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data_pipeline.document import Documents, keyed_hashes, text_bytes
from data_pipeline.filters.measure import KEEP, Measurement, Rule
from data_pipeline.report.statistics import EXAMPLE_CHARACTERS, UNKNOWN_LANGUAGE, StageStatistics, Tallies, add


def count_batch(
    statistics: StageStatistics,
    before: Documents,
    kept: Documents,
    verdicts: np.ndarray,
    reasons: Sequence[str],
    measurement: Measurement,
    rules: Sequence[Rule],
    seed: int,
) -> None:
    """Add a batch to the statistics of a stage.

    Args:
        before: the batch as the stage saw it.
        kept: what it left, edited.
        verdicts: int64 [documents], the index of each document's reason, KEEP for those in `kept`.
        reasons: without the stage's name.
    """
    named = [f"{statistics.stage}.{reason}" for reason in reasons]
    _tally(statistics.seen, before.batch)
    _tally(statistics.kept, kept.batch)
    dropped = np.flatnonzero(verdicts != KEEP)
    if len(dropped):
        _tally_reasons(statistics.dropped, before.batch.take(pa.array(dropped)), [named[v] for v in verdicts[dropped]])
        _take_examples(statistics, before.batch, dropped, [named[v] for v in verdicts[dropped]], seed)
    for score in dict.fromkeys(rule.score for rule in rules):
        if abstained := int(np.isnan(measurement.scores[score]).sum()):
            add(statistics.abstained, {f"{statistics.stage}.{score}": abstained})
    add(statistics.edits, {f"{statistics.stage}.{name}": count for name, count in measurement.counts.items() if count})


def _tally(table: Tallies, batch: pa.RecordBatch) -> None:
    languages = batch["language"].fill_null(UNKNOWN_LANGUAGE)
    _tally_reasons(table, batch, languages.to_pylist())


def _tally_reasons(table: Tallies, batch: pa.RecordBatch, keys: list[str]) -> None:
    cells: dict[tuple[str, str], list[int]] = {}
    sizes = text_bytes(batch).tolist()
    for source, key, size in zip(batch["source"].to_pylist(), keys, sizes, strict=True):
        cell = cells.setdefault((source, key), [0, 0])
        cell[0] += 1
        cell[1] += size
    for (source, key), (documents, size) in cells.items():
        tally = table.setdefault(source, {}).setdefault(key, [0, 0])
        tally[0] += documents
        tally[1] += size


def _take_examples(
    statistics: StageStatistics, batch: pa.RecordBatch, rows: np.ndarray, reasons: list[str], seed: int
) -> None:
    record_ids = batch["record_id"].take(pa.array(rows)).to_pylist()
    hashes = keyed_hashes(record_ids, "example", seed).tolist()
    for row, record_id, hash_, reason in zip(rows.tolist(), record_ids, hashes, reasons, strict=True):
        if not statistics.wants_example(reason, hash_):
            continue
        record = {name: batch[name][row].as_py() for name in ("source", "file", "row", "language")}
        text = batch["text"][row].as_py()[:EXAMPLE_CHARACTERS]
        statistics.example(reason, {"hash": hash_, "record_id": record_id.hex(), **record, "text": text})
