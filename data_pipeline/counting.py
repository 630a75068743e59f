"""Counts what a stage did to a batch: documents and bytes by source, language and reason; scores, hosts and examples.

This runs for every batch of every stage, so it works on whole columns: names become small integers, and counting is
`bincount` over them. Only the few documents that are shown as examples are looked at one by one.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_pipeline.document import Documents, text_bytes
from data_pipeline.filters.measure import KEEP, Measurement, Rule
from data_pipeline.report.histogram import count_bins
from data_pipeline.report.statistics import (
    EXAMPLES_PER_REASON,
    HOST_SAMPLE,
    MASKED_CHARACTERS,
    NO_LICENSE,
    OPT_OUT,
    UNKNOWN_LANGUAGE,
    StageStatistics,
    Tallies,
    add,
    add_tally,
)

Codes = tuple[list[str], np.ndarray]
"""(names, int64 [documents]: the index of each document's name)"""

_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"
_WITHOUT_HOST = "no host"
_SHOWN = ["record_id", "text", "source", "file", "row", "language"]


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
    if not len(before):
        return
    stage = statistics.stage
    named = [f"{stage}.{reason}" for reason in reasons]
    sizes = text_bytes(before.batch)
    sources = _codes(before.batch["source"])
    order = example_hashes(before.batch["record_id"], seed)
    staying = verdicts == KEEP
    _tally(statistics.seen, sources, _languages(before.batch), sizes)
    _tally(statistics.kept, _codes(kept.batch["source"]), _languages(kept.batch), text_bytes(kept.batch))
    _take_examples(statistics, "kept_examples", stage, kept.batch, np.arange(len(kept)), order[staying])
    dropped = np.flatnonzero(~staying)
    if len(dropped):
        verdicts_dropped = verdicts[dropped]
        _tally(statistics.dropped, (sources[0], sources[1][dropped]), (named, verdicts_dropped), sizes[dropped])
        for index in np.unique(verdicts_dropped).tolist():
            rows = dropped[verdicts_dropped == index]
            _take_examples(statistics, "examples", named[index], before.batch, rows, order[rows])
        sample_hosts(statistics, "dropped", before.batch, dropped, order[dropped])
    _count_scores(statistics, measurement, rules, sizes)
    for index, rule in enumerate(rules, len(measurement.drops)):
        _take_near(statistics, rule, named[index], before.batch, measurement, staying, verdicts == index, order)
    add(statistics.edits, {f"{stage}.{name}": count for name, count in measurement.counts.items() if count})


def count_written(statistics: StageStatistics, batch: pa.RecordBatch, seed: int) -> None:
    """Count a batch that goes into the shards by license and opt-outs of its documents; offer their hosts as kept."""
    names, codes = _codes(batch["license"].fill_null(NO_LICENSE))
    documents, sizes = _sums(codes, len(names), text_bytes(batch))
    for name, count, size in zip(names, documents, sizes, strict=True):
        add_tally(statistics.licenses, name, count, size)
    if opted_out := batch.num_rows - batch["opt_out"].null_count:
        statistics.noted[OPT_OUT] = statistics.noted.get(OPT_OUT, 0) + opted_out
    sample_hosts(statistics, "kept", batch, np.arange(batch.num_rows), example_hashes(batch["record_id"], seed))


def example_hashes(record_ids: pa.Array, seed: int) -> np.ndarray:
    """Return uint64 [documents] that choose examples: the first half of the record id, keyed and mixed.

    A record id is a hash already; xor with a key and the finalizer of SplitMix64 (Steele et al. 2014) make it another
    one for every seed.
    """
    words = np.frombuffer(record_ids.buffers()[1], np.uint64)[2 * record_ids.offset :][: 2 * len(record_ids) : 2]
    mixed = words ^ np.uint64(xxhash.xxh3_64_intdigest(f"example\0{seed}".encode()))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sample_hosts(
    statistics: StageStatistics, outcome: str, batch: pa.RecordBatch, rows: np.ndarray, hashes: np.ndarray
) -> None:
    """Offer the hosts of `rows` to the sample; only those that can stay in it are parsed."""
    known = batch["url"].is_valid().to_numpy(zero_copy_only=False)[rows]
    rows, hashes = rows[known], hashes[known]
    if not len(rows):
        return
    add(statistics.urls, {outcome: len(rows)})
    held = statistics.hosts.get(outcome, [])
    if len(held) == HOST_SAMPLE:
        within = hashes <= np.uint64(held[-1][0])
        rows, hashes = rows[within], hashes[within]
    smallest = np.argsort(hashes, kind="stable")[:HOST_SAMPLE]
    urls = batch["url"].take(pa.array(rows[smallest]))
    hosts = pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, _HOST), "host"))
    pairs = zip(hashes[smallest].tolist(), hosts.fill_null(_WITHOUT_HOST).to_pylist(), strict=True)
    statistics.sample_hosts(outcome, [list(pair) for pair in pairs])


def _codes(column: pa.Array) -> Codes:
    encoded = column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _languages(batch: pa.RecordBatch) -> Codes:
    return _codes(batch["language"].fill_null(UNKNOWN_LANGUAGE))


def _sums(codes: np.ndarray, names: int, sizes: np.ndarray) -> tuple[list[int], list[int]]:
    """Return documents and bytes of each code; float64 is exact, since a batch is less than 2^53 bytes."""
    documents = np.bincount(codes, minlength=names)
    return documents.tolist(), np.bincount(codes, sizes, minlength=names).astype(np.int64).tolist()


def _tally(table: Tallies, sources: Codes, keys: Codes, sizes: np.ndarray) -> None:
    width = len(keys[0])
    documents, bytes_ = _sums(sources[1] * width + keys[1], len(sources[0]) * width, sizes)
    for cell in np.flatnonzero(documents).tolist():
        source, key = divmod(cell, width)
        add_tally(table.setdefault(sources[0][source], {}), keys[0][key], documents[cell], bytes_[cell])


def _count_scores(
    statistics: StageStatistics, measurement: Measurement, rules: Sequence[Rule], sizes: np.ndarray
) -> None:
    stage = statistics.stage
    if not measurement.scores:
        return
    scores = np.stack(list(measurement.scores.values()))
    unknown = dict(zip(measurement.scores, np.isnan(scores).sum(1).tolist(), strict=True))
    ruled = {rule.score for rule in rules}
    add(statistics.abstained, {f"{stage}.{score}": unknown[score] for score in sorted(ruled) if unknown[score]})
    for score, bins in zip(measurement.scores, count_bins(scores), strict=True):
        add(statistics.histograms.setdefault(f"{stage}.{score}", {}), bins)
    for rule in rules:
        failed = ~rule.passes(measurement.scores[rule.score])
        add_tally(statistics.failed, f"{stage}.{rule.reason}", int(failed.sum()), int(sizes[failed].sum()))


def _take_near(
    statistics: StageStatistics,
    rule: Rule,
    reason: str,
    batch: pa.RecordBatch,
    measurement: Measurement,
    staying: np.ndarray,
    dropped: np.ndarray,
    order: np.ndarray,
) -> None:
    """Offer the kept documents nearest to the rule's cut, and the nearest of those that this rule dropped."""
    values = measurement.scores[rule.score]
    distances = np.fmin(np.abs(values - rule.minimum), np.abs(values - rule.maximum))
    for into, chosen in (("near_kept", staying), ("near_dropped", dropped)):
        held = getattr(statistics, into).get(reason, [])
        farthest = held[-1]["distance"] if len(held) == EXAMPLES_PER_REASON else np.finfo(np.float64).max
        rows = np.flatnonzero(chosen & (distances <= farthest))
        _take_examples(statistics, into, reason, batch, rows, order[rows], distances[rows], values)


def _take_examples(
    statistics: StageStatistics,
    into: str,
    reason: str,
    batch: pa.RecordBatch,
    rows: np.ndarray,
    hashes: np.ndarray,
    distances: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> None:
    """Offer the rows with the smallest (distance, hash); the others could not stay."""
    if len(rows) > EXAMPLES_PER_REASON:
        ranks = hashes if distances is None else distances
        limit = np.partition(ranks, EXAMPLES_PER_REASON - 1)[EXAMPLES_PER_REASON - 1]
        within = np.flatnonzero(ranks <= limit)
        if distances is not None:  # many may be equally near
            within = within[np.lexsort((hashes[within], distances[within]))][:EXAMPLES_PER_REASON]
        rows, hashes = rows[within], hashes[within]
        distances = None if distances is None else distances[within]
    columns: list[pa.Array] = []
    measured = [0.0] * len(rows) if distances is None else distances.tolist()
    for row, hash_, distance in zip(rows.tolist(), hashes.tolist(), measured, strict=True):
        if not statistics.wants_example(reason, hash_, distance, into):
            continue
        columns = columns or [batch[name] for name in _SHOWN]
        record_id, text, *shown = (column[row] for column in columns)
        start = text.as_buffer()[: 4 * MASKED_CHARACTERS]  # without decoding the rest of a long text
        example = {"hash": hash_, "record_id": record_id.as_py().hex()}
        example |= {name: value.as_py() for name, value in zip(_SHOWN[2:], shown, strict=True)}
        example["text"] = start.to_pybytes().decode("utf-8", "ignore")
        if scores is not None:
            example |= {"distance": distance, "score": float(scores[row])}
        statistics.example(reason, example, into)
