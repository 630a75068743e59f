"""From kept documents to shards: sample, train or load a tokenizer, encode, and write in keyed-hash order.

Every encoded partition is written as one sorted run per split and source; the shards of a source are the merge of
its runs, read through memory maps, so that memory does not grow with the corpus.
"""

import heapq
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.config import TokenizerKind, TokenizerTraining
from data_pipeline.counting import count_shards
from data_pipeline.document import keyed_hashes
from data_pipeline.engines.work import Block, Commit, Task, map_block, read_block, write_blocks
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.shards.writer import ShardSetWriter
from data_pipeline.split import TRAIN, VALIDATION, Share, index, is_validation
from data_pipeline.tokenize import load_tokenizer, train_byte_level, train_sentencepiece
from llama_foundation.errors import DataError

NAME = "shards"
VERSION = 2

INDEX_VERSION = 2

FIRST_WORDS = 80
"""Characters of a document that its provenance quotes."""

_ENCODE_CHARACTERS = 1024 * 1024  # handed to the tokenizer at once
_MERGE_ROWS = 1024  # of one run held as Python objects while merging


@dataclass(frozen=True)
class Sample:
    """Which documents of a partition a tokenizer is trained on: by source, and not held out."""

    block: Block
    shares: dict[str, Share]
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
    seed: int


@dataclass(frozen=True)
class ShardSet:
    """The runs of one split and source, and where they go."""

    blocks: tuple[Block, ...]
    directory: str
    fingerprint: str
    vocabulary_size: int
    max_shard_bytes: int


def index_task(folder: Path, task: Task) -> Commit:
    """Write the hashes and sizes of one partition."""
    block, seed = task.payload
    batch = read_block(block).combine_chunks().to_batches()[0]
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", index(batch, seed))]))


def sample_task(folder: Path, task: Task) -> Commit:
    """Write the texts of one partition that belong to the tokenizer's sample."""
    sample: Sample = task.payload
    batch = read_block(sample.block).combine_chunks().to_batches()[0]
    hashes = index(batch, sample.seed)
    sources = batch["source"].to_numpy(zero_copy_only=False)
    chosen = np.zeros(batch.num_rows, dtype=bool)
    for source, share in sample.shares.items():
        chosen |= (sources == source) & (hashes["sample_hash"].to_numpy() <= np.uint64(share.largest_hash))
    chosen &= ~is_validation(hashes["validation_hash"].to_numpy(), sample.validation_limit)
    if not chosen.any():
        return Commit()
    table = pa.table({"hash": hashes["sample_hash"], "record_id": batch["record_id"], "text": batch["text"]})
    table = table.filter(pa.array(chosen))
    longest = [sample.shares[source].most_bytes for source in sources[chosen]]
    texts = [
        text.encode()[:most].decode("utf-8", "ignore")
        for text, most in zip(table["text"].to_pylist(), longest, strict=True)
    ]
    table = table.set_column(2, "text", pa.array(texts, table["text"].type))
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
    """Encode one partition and write it as one sorted run per split and source."""
    encoding: Encoding = task.payload
    statistics = StageStatistics(NAME)
    batch = read_block(encoding.block).combine_chunks().to_batches()[0]
    tokenizer = _tokenizer(encoding.tokenizer, encoding.fingerprint)
    record_ids = batch["record_id"].to_pylist()
    order = keyed_hashes(record_ids, "order", encoding.seed)
    held_out = is_validation(keyed_hashes(record_ids, VALIDATION, encoding.seed), encoding.validation_limit)
    texts = batch["text"].to_pylist()
    sources = batch["source"].to_pylist()
    count_shards(statistics, batch, encoding.seed)
    tokens = list(_encode(texts, tokenizer))
    groups: dict[str, list[int]] = {}
    for row in sorted(range(len(texts)), key=lambda row: (int(order[row]), record_ids[row])):
        split = VALIDATION if held_out[row] else TRAIN
        groups.setdefault(f"{split}/{sources[row]}", []).append(row)
        counts = statistics.tokens.setdefault(sources[row], {})
        counts[split] = counts.get(split, 0) + len(tokens[row])

    def runs() -> Iterator[tuple[str, pa.Table]]:
        for group, rows in sorted(groups.items()):
            columns = batch.select(["record_id", "source", "file", "row", "url", "language"]).take(pa.array(rows))
            table = pa.Table.from_batches([columns])
            first_words = [" ".join(texts[row][: 4 * FIRST_WORDS].split())[:FIRST_WORDS] for row in rows]
            table = table.append_column("first_words", pa.array(first_words, pa.string()))
            table = table.append_column("order", pa.array(order[rows]))
            lengths = np.cumsum([0, *(len(tokens[row]) for row in rows)])
            values = np.concatenate([tokens[row] for row in rows])
            yield group, table.append_column("tokens", pa.LargeListArray.from_arrays(lengths, values))

    blocks = write_blocks(folder / f"{task.name}.arrow", runs(), compression=None)
    return Commit(blocks, [statistics])


def write_task(folder: Path, task: Task) -> Commit:
    """Merge the runs of one split and source into its shards."""
    shard_set: ShardSet = task.payload
    directory = Path(shard_set.directory)
    shutil.rmtree(directory, ignore_errors=True)  # what a killed run, or one with other settings, published
    for partial in directory.parent.glob(f".{directory.name}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    tables = [map_block(block) for block in shard_set.blocks]
    tokens = [_token_arrays(table) for table in tables]
    provenance = [table.drop_columns(["tokens", "order"]) for table in tables]
    runs = [_run(table, number) for number, table in enumerate(tables)]
    with ShardSetWriter(
        directory, shard_set.fingerprint, shard_set.vocabulary_size, shard_set.max_shard_bytes
    ) as writer:
        for _, record_id, number, row in heapq.merge(*runs):
            offsets, values = tokens[number]
            described = provenance[number].slice(row, 1).to_pylist()[0]
            writer.add(values[offsets[row] : offsets[row + 1]], {**described, "record_id": record_id.hex()})
    return Commit()


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


def _run(table: pa.Table, number: int) -> Iterator[tuple[int, bytes, int, int]]:
    for start in range(0, table.num_rows, _MERGE_ROWS):
        piece = table.slice(start, _MERGE_ROWS)
        pairs = zip(piece["order"].to_pylist(), piece["record_id"].to_pylist(), strict=True)
        for row, (order, record_id) in enumerate(pairs, start):
            yield order, record_id, number, row


def _token_arrays(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    column = table["tokens"]
    assert column.num_chunks == 1, "a run is written as one batch so that its rows can be found without a copy"
    return column.chunk(0).offsets.to_numpy(), column.chunk(0).values.to_numpy()


@lru_cache(maxsize=1)
def _tokenizer(path: str, fingerprint: str) -> object:
    tokenizer = load_tokenizer(Path(path))
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"{path} changed while the run was going on; run the same command again")
    return tokenizer
