"""Makes the pack index of one source: best-fit packing, block by block."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.shards.best_fit import best_fit, cut_documents
from data_pipeline.shards.manifest import MANIFEST, file_checksum
from data_pipeline.shards.packs import (
    EXTENSION,
    HEADER,
    LONGEST_PACK,
    MAGIC,
    NOTHING,
    VERSION,
    PackFile,
    PackManifest,
    PackSet,
    PackStatistics,
    pack_directory,
    write_pack_manifest,
)
from data_pipeline.shards.reader import ShardSet
from data_pipeline.shards.writer import BlockFile, cannot_write
from llama_foundation.errors import DataError
from llama_foundation.files import BLOCK_BYTES, publish_directory

BLOCK_DOCUMENTS = 1 << 16
BLOCK_TOKENS = 1 << 28
"""A block ends before it would exceed either; only a longer document exceeds the second."""


def write_packs(
    shards: ShardSet,
    sequence_length: int,
    block_documents: int = BLOCK_DOCUMENTS,
    block_tokens: int = BLOCK_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> PackSet:
    """Pack a source for one sequence length; `packs-<sequence_length>` appears beside its shards, whole.

    An index that is already there, made for these shards with the same blocks, is kept; another one is replaced.
    Memory: a block, and 8 bytes for every pack and 12 for every piece of one shard.

    Args:
        progress: called with the number of documents newly packed.

    Raises:
        DataError: a shard is damaged, or the disk refuses.
    """
    assert 1 <= sequence_length <= LONGEST_PACK, sequence_length
    wanted = (block_documents, block_tokens)
    final = pack_directory(shards.directory, sequence_length)
    try:
        existing = PackSet(shards, sequence_length)
        existing.check()
        if (existing.manifest.block_documents, existing.manifest.block_tokens) == wanted:
            if progress:
                progress(shards.documents)
            return existing
    except DataError:
        pass  # missing, damaged or made for other shards: what is made now takes its place
    temporary = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        statistics, files = NOTHING, []
        for shard in range(len(shards.shard_tokens)):
            file, found = _write_shard(temporary, shards, shard, sequence_length, wanted, progress)
            files.append(file)
            statistics += found
        made_for = file_checksum(shards.directory / MANIFEST)
        write_pack_manifest(
            temporary, PackManifest(made_for, sequence_length, *wanted, BLOCK_BYTES, tuple(files), statistics)
        )
        if final.exists():
            shutil.rmtree(final)
        publish_directory(temporary, final)
    except OSError as error:
        raise cannot_write(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return PackSet(shards, sequence_length)


def pack_block(starts: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack the documents of a block.

    Args:
        starts: int64 [documents + 1], their token offsets; the last one is the end.

    Returns:
        Where each pack ends (int64 [packs], counted in pieces), and token offset and tokens of every piece, pack by
        pack, in a pack by token offset.
    """
    piece_starts, piece_lengths = cut_documents(starts, sequence_length)
    packs, count = best_fit(piece_lengths, sequence_length)
    by_pack = np.argsort(packs, kind="stable")
    return np.cumsum(np.bincount(packs, minlength=count)), piece_starts[by_pack], piece_lengths[by_pack]


def measure_block(starts: np.ndarray, sequence_length: int, packs: int, windows: int) -> PackStatistics:
    """Count what packing a block cuts and pads, and what cutting its shard into `windows` windows does to it."""
    lengths = np.diff(starts)
    longer = lengths > sequence_length
    across = (lengths > 0) & (starts[:-1] // sequence_length != (starts[1:] - 1) // sequence_length)
    tokens = int(starts[-1] - starts[0])
    return PackStatistics(
        documents=len(lengths),
        tokens=tokens,
        packs=packs,
        cut_documents=int(longer.sum()),
        tokens_of_cut_documents=int(lengths[longer].sum()),
        padding_tokens=packs * sequence_length - tokens,
        windows=0,  # of a shard, not of a block
        concatenate_cut_documents=int(across.sum()),
        concatenate_tokens_of_cut_documents=int(lengths[across].sum()),
        concatenate_unused_tokens=int(max(starts[-1] - max(windows * sequence_length, starts[0]), 0)),
    )


def _write_shard(
    directory: Path,
    shards: ShardSet,
    shard: int,
    sequence_length: int,
    blocks: tuple[int, int],
    progress: Callable[[int], None] | None,
) -> tuple[PackFile, PackStatistics]:
    windows = (shards.shard_tokens[shard] - 1) // sequence_length
    statistics = replace(NOTHING, windows=windows)
    ends, starts, lengths, block_packs, pieces = [], [], [], [], 0
    for document_starts in _blocks(shards, shard, *blocks):
        block_ends, block_starts, block_lengths = pack_block(document_starts, sequence_length)
        ends.append(block_ends + pieces)
        starts.append(block_starts)
        lengths.append(block_lengths.astype(np.int32))
        pieces += len(block_starts)
        block_packs.append(len(block_ends))
        statistics += measure_block(document_starts, sequence_length, len(block_ends), windows)
        if progress:
            progress(len(document_starts) - 1)
    packs = sum(block_packs)
    file = BlockFile(directory / f"shard-{shard:05d}.{EXTENSION}")
    try:
        file.write(HEADER.pack(MAGIC, VERSION, sequence_length, packs, pieces))
        for values, dtype in ((ends, "<i8"), (starts, "<i8"), (lengths, "<i4")):
            for block in values:
                file.write(block.astype(dtype, copy=False).tobytes())
        return PackFile(packs, pieces, tuple(block_packs), file.finish()), statistics
    finally:
        file.abandon()


def _blocks(shards: ShardSet, shard: int, block_documents: int, block_tokens: int) -> Iterator[np.ndarray]:
    """Yield the token offsets of the documents of every block and where the block ends: int64 [documents + 1]."""
    documents, first = shards.manifest.shards[shard].documents, 0
    while first < documents:
        starts = shards.document_starts_between(shard, first, min(first + block_documents, documents))
        fitting = int(np.searchsorted(starts, starts[0] + block_tokens, side="right")) - 1
        starts = starts[: max(fitting, 1) + 1]
        yield starts
        first += len(starts) - 1
