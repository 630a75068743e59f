"""Decontamination: documents that hold examples of benchmarks are cut or dropped, and what is left is reported.

    index of the benchmarks -> matches of each block -> common n-grams -> cut or drop -> report

The index is small and goes to every worker. Every share is counted twice: what the documents held before the stage,
and what those that stay still hold.

Memory per worker: the index, about 60 bytes per word of the benchmarks, a block of documents, and 48 bytes for each
match in it.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.counting import count_batch
from data_pipeline.decontaminate.benchmarks import Index, examples_table
from data_pipeline.decontaminate.cut import cut
from data_pipeline.decontaminate.matches import Matches, contaminating, find_matches, longest
from data_pipeline.decontaminate.report import benchmark_counts, show
from data_pipeline.decontaminate.settings import Action, Decontaminate, Rules
from data_pipeline.dedup.survivors import plain
from data_pipeline.engines.work import Block, Commit, Task, read_block, total_statistics, write_blocks
from data_pipeline.filters.measure import KEEP, Measurement
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import DataError
from llama_foundation.files import checksum, publish_json

NAME = "decontaminate"
VERSION = 1

REPORT = "decontamination.json"
"""Beside the shards: the counts of `report.benchmark_counts`."""

REASONS = ["contaminated", "too_many_pieces", "nothing_left"]

_MATCHES, _DOCUMENTS, _COVERED = "matches", "documents", "covered"


def run(chain: Chain, blocks: list[Block], settings: Decontaminate) -> tuple[list[Block], list[StageStatistics]]:
    """Cut or drop what holds examples of the benchmarks; print and write how many examples are contaminated."""
    settings.check()
    rules = Rules.of(settings)
    contents = {name: _fingerprint(name, path) for name, path in sorted(settings.benchmarks.items())}
    inputs = [VERSION, plain(settings), contents]
    label = "the benchmarks"
    indexed = chain.phase(f"{NAME}.index", inputs, _index_task, [settings], lambda _: label)
    examples = all_blocks(indexed)[0]
    matched = chain.phase(
        f"{NAME}.matches", None, _matches_task, [(block, examples, rules) for block in blocks], block_label
    )
    counts = [each for each in all_blocks(matched) if each.group == _DOCUMENTS]
    common = chain.phase(f"{NAME}.common", None, _common_task, [(counts, rules)], lambda _: "common n-grams")
    payloads = [
        (
            block,
            examples,
            [each for each in commit.blocks if each.group == _MATCHES],
            common[0].blocks,
            settings,
            chain.seed,
        )
        for block, commit in zip(blocks, matched, strict=True)
    ]
    decided = chain.phase(NAME, None, _decide_task, payloads, block_label)
    covered = [each for each in all_blocks(decided) if each.group == _COVERED]
    reported = chain.phase(f"{NAME}.report", None, _report_task, [(examples, covered, rules)], lambda _: label)
    counted = reported[0].notes["benchmarks"]
    plain_rules = {**asdict(rules), "action": rules.action.value}
    publish_json(
        chain.work.parent / REPORT, {"definition": settings.definition.value, **plain_rules, "benchmarks": counted}
    )
    show(chain.console, counted, rules)
    kept = [each for each in all_blocks(decided) if each.group != _COVERED]
    return kept, total_statistics([*decided, *indexed, *matched, *common, *reported], [NAME])


def _fingerprint(name: str, path: str) -> str:
    try:
        return checksum(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"pipeline.decontaminate.benchmarks.{name}={path} cannot be read: {error.strerror}") from error


def _index_task(folder: Path, task: Task) -> Commit:
    settings = task.payload
    table = examples_table(dict(settings.benchmarks), list(settings.fields))
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", table)]), [StageStatistics(NAME)])


def _matches_task(folder: Path, task: Task) -> Commit:
    """Write the matches of a block, and in how many of its documents each n-gram is."""
    block, examples, rules = task.payload
    matches = find_matches(load_documents(block).batch, Index.of(read_block(examples), rules.ngram), rules)
    if not len(matches.row):
        return Commit([], [StageStatistics(NAME)])
    pairs = np.unique(np.stack([matches.gram, matches.row], 1), axis=0)
    grams, documents = np.unique(pairs[:, 0], return_counts=True)
    groups = [(_MATCHES, matches.table()), (_DOCUMENTS, pa.table({"gram": grams, "documents": documents}))]
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _common_task(folder: Path, task: Task) -> Commit:
    """Write the n-grams that are in too many documents of the corpus to mean anything."""
    counts, rules = task.payload
    if rules.max_documents is None or not counts:
        return Commit([], [StageStatistics(NAME)])
    table = pa.concat_tables([read_block(each) for each in counts])
    table = table.group_by("gram").aggregate([("documents", "sum")]).sort_by("gram")
    table = table.filter(pa.array(table["documents_sum"].to_numpy() > rules.max_documents)).select(["gram"])
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", table)]), [StageStatistics(NAME)])


def _decide_task(folder: Path, task: Task) -> Commit:
    """Cut or drop the documents of a block; write which words of the examples it held, and which it still holds."""
    block, examples, found, common, settings, seed = task.payload
    rules = Rules.of(settings)
    documents = load_documents(block)
    measurement = Measurement({})
    verdicts = np.full(len(documents), KEEP, np.int64)
    covered = []
    if found:
        matches = Matches.of(read_block(found[0]))
        if common:
            matches = matches.select(~np.isin(matches.gram, read_block(common[0])["gram"].to_numpy()))
        guilty = contaminating(matches, Index.of(read_block(examples), rules.ngram), rules.min_share)
        stays = np.ones(len(matches.row), bool)
        if rules.action is Action.drop:
            verdicts[matches.row[guilty]] = 0
            stays = verdicts[matches.row] == KEEP
        elif rules.action is Action.cut:
            stays = _cut_rows(documents.batch["text"], matches, guilty, settings, verdicts, measurement)
        for name, of in (("before", np.ones(len(stays), bool)), ("after", stays)):
            place, length = longest([matches.place[of]], [matches.length[of]])
            covered.append(
                pa.table({"when": pa.array([name] * len(place), pa.string()), "place": place, "length": length})
            )
    kept = documents.with_measurement(NAME, measurement).select(verdicts == KEEP)
    statistics = StageStatistics(NAME)
    count_batch(statistics, documents, kept, verdicts, REASONS, measurement, [], seed)
    blocks = write_documents(folder / f"{task.name}.arrow", kept)
    if covered:
        blocks += write_blocks(folder / f"{task.name}.covered.arrow", [(_COVERED, pa.concat_tables(covered))])
    return Commit(blocks, [statistics])


def _cut_rows(
    texts: pa.Array,
    matches: Matches,
    guilty: np.ndarray,
    settings: Decontaminate,
    verdicts: np.ndarray,
    measurement: Measurement,
) -> np.ndarray:
    """Cut the guilty matches out of their documents; return bool [matches]: whether each is in what stays."""
    stays = np.ones(len(matches.row), bool)
    edited: dict[int, str] = {}
    lost = 0
    for row in np.unique(matches.row[guilty]).tolist():
        text = texts[row].as_py()
        own = np.flatnonzero(matches.row == row)
        starts, ends = matches.start[own], matches.end[own]
        left = cut(text, list(zip(starts[guilty[own]].tolist(), ends[guilty[own]].tolist(), strict=True)), settings)
        if left.text is None:
            verdicts[row] = REASONS.index(left.reason)
        else:
            edited[row] = left.text
            lost += len(text.encode()) - len(left.text.encode())
        stays[own] = [
            any(a <= start and end <= b for a, b in left.ranges) for start, end in zip(starts, ends, strict=True)
        ]
    if edited:
        measurement.texts = pa.array(
            [edited.get(row, text) for row, text in enumerate(texts.to_pylist())], pa.large_string()
        )
        measurement.counts.update(cut_documents=len(edited), cut_bytes=lost)
    return stays


def _report_task(folder: Path, task: Task) -> Commit:
    examples, covered, rules = task.payload
    index = Index.of(read_block(examples), rules.ngram)
    tables = [read_block(each) for each in covered]
    return Commit([], [StageStatistics(NAME)], {"benchmarks": benchmark_counts(index, tables, rules)})
