"""Exact substrings: runs of at least `min_words` words that occur more than once, cut out of all texts but the first.

Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", section 4.1 (50 tokens, by a suffix
array). Words are those of `word_spans`, so white space may differ between two occurrences, and nothing else. A window
is `min_words` words in a row. An occurrence of a window goes if the same words occur at a better place: in a document
that comes before it in the order of whom to keep, or earlier in the same document; and with keep_first=false also if
it is the best. What is cut is the union of those windows.

    minimizers -> repeated -> windows -> first -> cut

Two texts that share a window share its minimizer (`windows.minimizers`), so only windows with a repeated minimizer are
compared at all; they are compared by 128 bits of hash. N different windows in the corpus lead to one wrong cut with
probability at most N^2 / 2^129, 1.5e-15 for a trillion, if nobody made them to collide.

Memory per worker: a block of documents and 60 bytes for each of its words that lie at the start of a window with a
repeated minimizer; in a bucket, 100 bytes for each of about ROWS_PER_BUCKET rows, of which a block sends at most one
per different window. Disk: about 5 bytes per word for the minimizers, 60 for each window that was compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.counting import count_batch
from data_pipeline.dedup.spans_cut import cut_spans
from data_pipeline.dedup.survivors import KeepOrder, plain, rank, sort_keys
from data_pipeline.dedup.windows import minimizers, window_hashes
from data_pipeline.dedup.word_spans import WordSpans, mix, slices, word_spans
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, read_block, total_statistics, write_blocks
from data_pipeline.filters.measure import KEEP, Measurement
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import ConfigError

NAME = "substring_dedup"
VERSION = 1

ROWS_PER_BUCKET = 2_000_000

_LOCAL = "local"
"""The group of what a block keeps for itself between two phases."""


@dataclass
class SubstringDedup(KeepOrder):
    """How long a repeated run of words must be, where it stays, and what is left of a text that lost some."""

    min_words: int = 50  # Lee et al.: 50 tokens of a BPE; a character of a script without spaces is a word
    keep_first: bool = True  # false: every occurrence of what is repeated goes
    min_words_left: int = 1  # a text that was cut and has fewer is dropped

    def check(self) -> None:
        if self.min_words < 2:
            raise ConfigError(f"pipeline.{NAME}.min_words={self.min_words} must be at least 2")
        if self.min_words_left < 1:
            raise ConfigError(f"pipeline.{NAME}.min_words_left={self.min_words_left} must be at least 1")


def run(chain: Chain, blocks: list[Block], settings: SubstringDedup) -> tuple[list[Block], list[StageStatistics]]:
    """Cut repeated runs of words; a document of which too little is left is dropped."""
    settings.check()
    buckets = 1 + sum(block.length for block in blocks) // (16 * ROWS_PER_BUCKET)
    inputs = [VERSION, plain(settings), buckets]
    payloads = [(block, number, settings, buckets) for number, block in enumerate(blocks)]
    chosen = chain.phase(f"{NAME}.minimizers", inputs, _minimizers_task, payloads, block_label)
    repeated = _reduce(chain, "repeated", _repeated_task, chosen, settings)
    shared = group_blocks(repeated)
    payloads = [(block, shared.get(str(number), []), settings, buckets, number) for number, block in enumerate(blocks)]
    compared = chain.phase(f"{NAME}.windows", None, _windows_task, payloads, block_label)
    first = _reduce(chain, "first", _first_task, compared, settings)
    lost = group_blocks(first)
    payloads = [
        (
            block,
            [each for each in commit.blocks if each.group == _LOCAL],
            lost.get(str(number), []),
            settings,
            chain.seed,
        )
        for number, (block, commit) in enumerate(zip(blocks, compared, strict=True))
    ]
    cut = chain.phase(NAME, None, _cut_task, payloads, block_label)
    return all_blocks(cut), total_statistics([*cut, *chosen, *repeated, *compared, *first], [NAME])


def _reduce(
    chain: Chain, name: str, function: Callable[[Path, Task], Commit], commits: list[Commit], settings: SubstringDedup
) -> list[Commit]:
    """Run `function` over every bucket that the commits wrote to."""
    groups = {group: found for group, found in group_blocks(commits).items() if group != _LOCAL}
    payloads = [(bucket, found, settings) for bucket, found in sorted(groups.items())]
    return chain.phase(f"{NAME}.{name}", None, function, payloads, lambda payload: f"bucket {payload[0]}")


def _minimizers_task(folder: Path, task: Task) -> Commit:
    """Write the minimizers of a block, each once, with whether it occurs more than once."""
    block, number, settings, buckets = task.payload
    found = []
    for *_, values, _ in _minimized(load_documents(block), settings):
        found.append(values)
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    table = pa.table({"value": values, "several": counts > 1, "block": np.full(len(values), number)})
    groups = _by_group(table, _buckets(values, buckets))
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _repeated_task(folder: Path, task: Task) -> Commit:
    """Tell every block which of its minimizers occur more than once."""
    table = pa.concat_tables([read_block(block) for block in task.payload[1]]).sort_by("value")
    _, inverse, counts = np.unique(table["value"].to_numpy(), return_inverse=True, return_counts=True)
    several = np.bincount(inverse, weights=table["several"].to_numpy(), minlength=len(counts)) > 0
    table = table.filter(pa.array((several | (counts > 1))[inverse])).select(["value", "block"])
    groups = _by_group(table, table["block"].to_numpy())
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _windows_task(folder: Path, task: Task) -> Commit:
    """Keep where the windows with repeated minimizers are; send one row for each different one of them."""
    block, shared, settings, buckets, number = task.payload
    repeated = np.sort(
        np.concatenate([np.zeros(0, np.uint64), *(read_block(each)["value"].to_numpy() for each in shared)])
    )
    documents = load_documents(block)
    ranks = rank(documents, settings)
    order = np.empty(len(documents), np.int64)
    numbered = ranks.append_column("row", pa.array(np.arange(len(documents)))).sort_by(sort_keys(ranks))
    order[numbered["row"].to_numpy()] = np.arange(len(documents))
    columns: list[list[np.ndarray]] = [[np.zeros(0, kind)] for kind in (np.uint64, np.uint64, *3 * (np.int64,))]
    for first_row, words, chosen, places, values, scopes in _minimized(documents, settings) if len(repeated) else ():
        compared = np.zeros(len(words.first), bool)
        compared[places] = _among(values, repeated)
        windows = np.flatnonzero((chosen >= 0) & compared[chosen])
        if not len(windows):
            continue
        texts = _owners(words, windows)
        for column, found in zip(
            columns,
            (
                mix.py_func(window_hashes(words.first, settings.min_words)[windows] ^ scopes[texts]),
                window_hashes(words.second, settings.min_words)[windows],
                first_row + texts,
                words.starts[windows] - words.text_offsets[texts],
                words.ends[windows + settings.min_words - 1] - words.text_offsets[texts],
            ),
            strict=True,
        ):
            column.append(found)
    high, low, rows, starts, ends = (np.concatenate(column) for column in columns)
    sorting = np.lexsort((starts, order[rows], low, high))
    high, low, rows, starts, ends = (column[sorting] for column in (high, low, rows, starts, ends))
    best = np.ones(len(high), bool)
    best[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    identity = np.cumsum(best) - 1
    places = np.flatnonzero(best)
    sizes = np.diff(np.r_[places, len(high)])
    local = pa.table(
        {"row": rows, "start": starts, "end": ends, "id": identity, "best": best, "several": (sizes > 1)[identity]}
    )
    sent = ranks.drop_columns("scope").take(pa.array(rows[places]))
    for name, column in {
        "high": high[places],
        "low": low[places],
        "several": sizes > 1,
        "id": np.arange(len(places)),
        "block": np.full(len(places), number),
    }.items():
        sent = sent.append_column(name, pa.array(column))
    groups = [(_LOCAL, local)] if len(rows) else []
    groups += _by_group(sent, _buckets(high[places], buckets))
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _first_task(folder: Path, task: Task) -> Commit:
    """Tell every block which of its windows are at a better place in another one."""
    _, blocks, settings = task.payload
    table = pa.concat_tables([read_block(block) for block in blocks])
    table = table.sort_by([("high", "ascending"), ("low", "ascending"), *sort_keys(table)])
    high, low = table["high"].to_numpy(), table["low"].to_numpy()
    best = np.ones(len(high), bool)
    best[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    lost = ~best
    if not settings.keep_first:
        places = np.flatnonzero(best)
        lost = (np.diff(np.r_[places, len(high)]) > 1)[np.cumsum(best) - 1]
    table = table.filter(pa.array(lost)).select(["id", "block"])
    groups = _by_group(table, table["block"].to_numpy())
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups), [StageStatistics(NAME)])


def _cut_task(folder: Path, task: Task) -> Commit:
    """Cut the windows that lost, and drop documents of which too little is left."""
    block, local, lost, settings, seed = task.payload
    documents = load_documents(block)
    measurement = Measurement({}, counts={})
    verdicts = np.full(len(documents), KEEP, np.int64)
    if local:
        table = read_block(local[0])
        identity = table["id"].to_numpy()
        losing = np.zeros(identity.max() + 1, bool)
        for each in lost:
            losing[read_block(each)["id"].to_numpy()] = True
        goes = losing[identity] | ~table["best"].to_numpy(zero_copy_only=False)
        if not settings.keep_first:
            goes |= table["several"].to_numpy(zero_copy_only=False)
        rows, starts, ends = (table[name].to_numpy()[goes] for name in ("row", "start", "end"))
        texts, measurement.counts = cut_spans(documents.batch["text"], rows, starts, ends)
        was_cut = np.unique(rows)
        left = np.diff(word_spans(texts.take(pa.array(was_cut))).offsets)
        verdicts[was_cut[left < settings.min_words_left]] = 0
        measurement.texts = texts
    kept = documents.with_measurement(NAME, measurement).select(verdicts == KEEP)
    statistics = StageStatistics(NAME)
    count_batch(statistics, documents, kept, verdicts, ["too_little_left"], measurement, [], seed)
    return Commit(write_documents(folder / f"{task.name}.arrow", kept), [statistics])


def _minimized(
    documents: Documents, settings: SubstringDedup
) -> Iterator[tuple[int, WordSpans, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each slice of a block: its first row and its words; the gram that each window chose (`minimizers`);
    the different grams among them, uint64 the value of each; and uint64 [rows] the scopes of the slice."""
    gram = max(1, settings.min_words // 2)
    scopes = rank(documents, settings)["scope"].to_numpy()
    for first_row, batch in slices(documents.batch):
        words = word_spans(batch["text"])
        grams = window_hashes(words.first, gram)
        chosen = minimizers(grams, words.offsets, settings.min_words, gram)
        places = chosen[chosen >= 0]  # they never fall
        places = places[np.r_[True, places[1:] != places[:-1]][: len(places)]]
        own = scopes[first_row : first_row + batch.num_rows]
        values = mix.py_func(grams[places] ^ own[_owners(words, places)])
        yield first_row, words, chosen, places, values, own


def _owners(words: WordSpans, places: np.ndarray) -> np.ndarray:
    """Return int64 [places]: the text in which each of the words stands."""
    return np.searchsorted(words.offsets, places, "right") - 1


def _among(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return bool [values]: whether each is in the sorted `members`, of which there is at least one."""
    places = np.minimum(np.searchsorted(members, values), len(members) - 1)
    return members[places] == values


def _buckets(hashes: np.ndarray, buckets: int) -> np.ndarray:
    return ((hashes >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def _by_group(table: pa.Table, groups: np.ndarray) -> list[tuple[str, pa.Table]]:
    """Return (group, its rows in their order) in the form that `write_blocks` takes."""
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[order], return_index=True)
    ends = [*starts[1:].tolist(), len(groups)][: len(names)]
    table = table.take(pa.array(order))
    return [
        (str(name), table.slice(start, end - start))
        for name, start, end in zip(names.tolist(), starts.tolist(), ends, strict=True)
    ]
