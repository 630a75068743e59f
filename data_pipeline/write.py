"""From kept documents to shards: index, sample, train or load a tokenizer, encode, and write in keyed-hash order.

Every partition is encoded into ranges of the order hash (`radix.py`), and the shards of a source are its ranges one
behind the other, each sorted in memory. Memory grows neither with the corpus nor with the number of partitions: a
worker holds one partition (its text, its tokens as int32) or one range of at most `2 * partition_bytes`, twice over
while it is sorted; only a single larger document exceeds that.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import radix
from data_pipeline.batches import load_documents
from data_pipeline.config import TokenizerKind, TokenizerTraining
from data_pipeline.counting import count_batch, count_written
from data_pipeline.document import Documents, keyed_hashes
from data_pipeline.engines.work import Block, Commit, Task, commit_path, read_block, write_blocks
from data_pipeline.filters.measure import KEEP, Measurement
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.shards.writer import PROVENANCE, ShardSetWriter
from data_pipeline.split import (
    SPLITS,
    Share,
    index,
    is_validation,
    sample_shares,
    text_sizes,
    validation_hashes,
    validation_limit,
)
from data_pipeline.tokenize import load_tokenizer, train_byte_level, train_sentencepiece
from llama_foundation.errors import DataError, RunError

NAME = "shards"
VERSION = 4

INDEX_VERSION = 3

FIRST_WORDS = 80
"""Characters of a document that its provenance quotes."""

COPIED = ("source", "file", "row", "url", "language")
"""Columns of `PROVENANCE` that are the document's own."""

MORE_PROVENANCE = pa.schema(
    [
        pa.field("date", pa.string()),
        pa.field("license", pa.string()),
        pa.field("opt_out", pa.string()),  # robots rules and the like, as the record or its page states them
        pa.field("cluster", pa.string()),  # 32 hexadecimal digits: the record that stands for the cluster
        pa.field("copies", pa.int64(), nullable=False),
    ]
)
"""What the pipeline knows of a document beyond `PROVENANCE`; behind it comes a float32 column per score."""

_ENCODE_CHARACTERS = 1024 * 1024  # handed to the tokenizer at once


@dataclass(frozen=True)
class Planning:
    """The indexes of all partitions, and what is to be decided from them."""

    indexes: tuple[Block, ...]
    validation_fraction: float
    training: TokenizerTraining | None


@dataclass(frozen=True)
class Sample:
    """Which documents of a partition a tokenizer is trained on: by source, and not held out."""

    block: Block
    shares: tuple[Share, ...]
    validation_limit: int
    seed: int


@dataclass(frozen=True)
class Training:
    """The sampled texts, and what to make of them."""

    blocks: tuple[Block, ...]
    settings: TokenizerTraining


@dataclass(frozen=True)
class Encoding:
    """One partition, and what encodes it."""

    block: Block
    tokenizer: str  # path
    fingerprint: str
    validation_limit: int
    parts: dict[str, int]  # <split>/<source> -> into how many ranges it is cut
    seed: int


@dataclass(frozen=True)
class ShardSet:
    """The documents of one split and source, as ranges in their order, and where they go."""

    ranges: tuple[tuple[Block, ...], ...]
    directory: str
    fingerprint: str
    vocabulary_size: int
    max_shard_bytes: int


def index_task(folder: Path, task: Task) -> Commit:
    """Write the hashes and sizes of one partition."""
    block, seed = task.payload
    batch = _unpublished(load_documents(block)).batch
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", index(batch, seed))]))


def plan_task(folder: Path, task: Task) -> Commit:
    """Decide which hashes are held out and which are in the tokenizer's sample; count the text of every group."""
    planning: Planning = task.payload
    tables = _Tables(planning.indexes)
    limit = validation_limit(tables, planning.validation_fraction)
    sizes = text_sizes(tables, limit)
    groups: dict[str, int] = {}
    for (split, source, _), size in sizes.items():
        groups[f"{split}/{source}"] = groups.get(f"{split}/{source}", 0) + size
    shares: list[Share] = []
    if (training := planning.training) and sizes:
        weights, temperature = training.source_weights, training.temperature
        shares = sample_shares(tables, limit, sizes, training.sample_bytes, weights, temperature)
    return Commit(notes={"limit": limit, "groups": groups, "shares": [asdict(share) for share in shares]})


def sample_task(folder: Path, task: Task) -> Commit:
    """Write the texts of one partition that belong to the tokenizer's sample."""
    sample: Sample = task.payload
    batch = _unpublished(load_documents(sample.block)).batch
    hashes = index(batch, sample.seed)
    in_train = ~is_validation(hashes["validation_hash"].to_numpy(), sample.validation_limit)
    columns = {name: hashes[name].cast(pa.string()).to_numpy() for name in ("source", "language")}
    most = np.full(batch.num_rows, -1, np.int64)  # bytes of a chosen document, -1 for the others
    for share in sample.shares:
        chosen = in_train & (columns["source"] == share.source)
        chosen &= hashes["sample_hash"].to_numpy() <= np.uint64(share.largest_hash)
        if share.language is not None:
            chosen &= columns["language"] == share.language
        most[chosen] = share.most_bytes
    rows = np.flatnonzero(most >= 0)
    if not len(rows):
        return Commit()
    texts = [
        text.encode()[: most[row]].decode("utf-8", "ignore")
        for row, text in zip(rows.tolist(), batch["text"].take(pa.array(rows)).to_pylist(), strict=True)
    ]
    table = pa.table(
        {
            "hash": hashes["sample_hash"].take(pa.array(rows)),
            "record_id": batch["record_id"].take(pa.array(rows)),
            "text": pa.array(texts, pa.large_string()),
        }
    )
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", table)]))


def tokenizer_task(folder: Path, task: Task) -> Commit:
    """Train the tokenizer on the sampled texts, in the order of their hashes."""
    training: Training = task.payload
    table = pa.concat_tables([read_block(block) for block in training.blocks])
    table = table.sort_by([("hash", "ascending"), ("record_id", "ascending")])
    texts = table["text"].to_pylist()
    settings = training.settings
    if settings.kind is TokenizerKind.byte_level:
        train_byte_level(texts, folder / "tokenizer.model", settings.vocabulary_size)
    else:
        train_sentencepiece(texts, folder / "tokenizer.model", settings.vocabulary_size, settings.character_coverage)
    return Commit(
        notes={"documents": len(texts), "fingerprint": load_tokenizer(folder / "tokenizer.model").fingerprint}
    )


def encode_task(folder: Path, task: Task) -> Commit:
    """Encode one partition and cut it, for each split and source, into ranges of the order hash."""
    encoding: Encoding = task.payload
    everything = load_documents(encoding.block)
    documents = _unpublished(everything)
    statistics = StageStatistics(NAME)
    verdicts = np.where(everything.batch["published"].to_numpy(zero_copy_only=False), 0, KEEP)
    count_batch(statistics, everything, documents, verdicts, ["already_published"], Measurement({}), [], encoding.seed)
    if not len(documents):
        return Commit(statistics=[statistics], notes=radix.range_notes([]))
    batch = documents.batch
    held_out = is_validation(validation_hashes(batch, encoding.seed), encoding.validation_limit)
    sources = batch["source"].to_pylist()
    count_written(statistics, batch, encoding.seed)
    texts = batch["text"].to_pylist()
    tokens = list(_encode(texts, _tokenizer(encoding.tokenizer, encoding.fingerprint)))
    described = _describe(batch, texts).append_column(
        "order", pa.array(keyed_hashes(batch["record_id"].to_pylist(), "order", encoding.seed))
    )
    groups: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        split = SPLITS[int(held_out[row])]
        groups.setdefault(f"{split}/{source}", []).append(row)
        counts = statistics.tokens.setdefault(source, {})
        counts[split] = counts.get(split, 0) + len(tokens[row])
    tables = []
    for group, rows in sorted(groups.items()):
        lengths = np.cumsum([0, *(len(tokens[row]) for row in rows)])
        values = pa.LargeListArray.from_arrays(lengths, np.concatenate([tokens[row] for row in rows]))
        table = described.take(pa.array(rows)).append_column("tokens", values)
        tables += radix.cut(radix.Range(group), table, encoding.parts[group])
    blocks = write_blocks(folder / f"{task.name}.arrow", tables)
    return Commit(blocks, [statistics], radix.range_notes(tables))


def write_task(folder: Path, task: Task) -> Commit:
    """Write one split and source as shards: its ranges, sorted, one behind the other."""
    shard_set: ShardSet = task.payload
    directory = Path(shard_set.directory)
    private = folder / f"{task.name}-{os.urandom(4).hex()}"  # another worker may be doing the same
    first = radix.read_range(list(shard_set.ranges[0]))
    schema = _provenance_schema(first.schema)
    writer = ShardSetWriter(
        private, shard_set.fingerprint, shard_set.vocabulary_size, shard_set.max_shard_bytes, schema
    )
    with writer:
        for number, blocks in enumerate(shard_set.ranges):
            table = radix.read_range(list(blocks)) if number else first
            tokens = table["tokens"].chunk(0)
            offsets, values = tokens.offsets.to_numpy(), tokens.values.to_numpy()
            rows = table.select(schema.names).to_pylist()
            first = None
            for row, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
                writer.add(values[start:end], rows[row])
    if not commit_path(folder, task).exists():
        _replace_directory(private, directory)
    shutil.rmtree(private, ignore_errors=True)
    return Commit()


def _unpublished(documents: Documents) -> Documents:
    return documents.select(~documents.batch["published"].to_numpy(zero_copy_only=False))


def _describe(batch: pa.RecordBatch, texts: list[str]) -> pa.Table:
    """Return the columns of the provenance sidecar."""
    first_words = [" ".join(text[: 4 * FIRST_WORDS].split())[:FIRST_WORDS] for text in texts]
    columns: dict[str, Any] = {"record_id": _hexadecimal(batch["record_id"])}
    columns |= {name: batch[name] for name in COPIED}
    columns |= {"first_words": pa.array(first_words, pa.string())}
    columns |= {name: batch[name] for name in MORE_PROVENANCE.names}
    columns["cluster"] = _hexadecimal(batch["cluster"])
    return pa.table(columns | {name: batch[name] for name in batch.schema.names if "." in name})


def _provenance_schema(run: pa.Schema) -> pa.Schema:
    scores = [pa.field(name, pa.float32()) for name in run.names if "." in name]
    return pa.schema([*PROVENANCE, *MORE_PROVENANCE, *scores])


def _hexadecimal(values: pa.Array) -> pa.Array:
    return pa.array([value and value.hex() for value in values.to_pylist()], pa.string())


def _replace_directory(made: Path, final: Path) -> None:
    """Put `made` where `final` is, which a killed run, other settings, or another worker may have left there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        try:
            os.rename(made, final)
            return
        except OSError:
            old = made.with_name(f"{made.name}.old")
            try:
                os.rename(final, old)
            except FileNotFoundError:
                continue  # another worker was faster
            shutil.rmtree(old, ignore_errors=True)
    raise RunError(f"{final} cannot be replaced: other processes keep writing it; end them and run again")


class _Tables:
    """Index tables that are read anew each time somebody goes through them."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[pa.Table]:
        return map(read_block, self._blocks)


def _encode(texts: list[str], tokenizer: object) -> Iterator[np.ndarray]:
    """Yield bos + tokens + eos of each text, int32."""
    waiting: list[str] = []
    characters = 0
    for text in [*texts, None]:
        if waiting and (text is None or characters + len(text) > _ENCODE_CHARACTERS):
            for ids in tokenizer.encode_batch(waiting):
                yield np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id])).astype(np.int32)
            waiting, characters = [], 0
        if text is not None:
            waiting.append(text)
            characters += len(text)


@lru_cache(maxsize=1)
def _tokenizer(path: str, fingerprint: str) -> object:
    tokenizer = load_tokenizer(Path(path))
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"{path} changed while the run was going on; run the same command again")
    return tokenizer
