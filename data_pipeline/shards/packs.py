"""The pack index: for one source and one sequence length S, which pieces of documents make up each pack.

    <source>/packs-<S>/manifest.json        counts, statistics, checksums, and which shards it was made for
    <source>/packs-<S>/shard-00000.packs    the packs of shard 0

A pack has at most S tokens and lies within one shard file. A `.packs` file, all numbers little-endian:

    offset          type     what
    0               8 bytes  b"PACKIDX" and a zero byte
    8               uint64   version, 1
    16              uint64   sequence length S, in tokens
    24              uint64   number of packs, n
    32              uint64   number of pieces, m
    40              int64    n piece numbers: pack p is the pieces from entry p - 1 (0 for the first) up to entry p
    40+8n           int64    m token offsets of the pieces in the shard
    40+8n+8m        int32    m lengths of the pieces, in tokens

The packs are made block by block, a block being a run of documents, and stand in the order of the blocks. Blocks are
the same for every sequence length, so that a run with several lengths can share the documents by sharing blocks.
"""

import functools
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipeline.shards.manifest import (
    MANIFEST,
    FileEntry,
    check_digests,
    checked_count,
    file_checksum,
    file_from_json,
    file_to_json,
    inside,
    publish_sealed,
    read_sealed,
)
from data_pipeline.shards.reader import ShardSet, check_block, check_size, map_file
from llama_foundation.errors import DataError

MAGIC = b"PACKIDX\x00"
VERSION = 1
HEADER = struct.Struct("<8sQQQQ")
LONGEST_PACK = 2**31 - 1  # lengths are int32
EXTENSION = "packs"
_MOST_OPEN = 64  # files of one set; each holds a file descriptor
_CHUNK = 1 << 20  # entries worked on at a time


@dataclass(frozen=True)
class PackStatistics:
    """What packing does to a source, against concatenating its documents and cutting at every S tokens.

    `unused_tokens` are those at the end of a shard that do not fill a window.
    """

    documents: int
    tokens: int
    packs: int
    cut_documents: int
    tokens_of_cut_documents: int
    padding_tokens: int
    windows: int
    concatenate_cut_documents: int
    concatenate_tokens_of_cut_documents: int
    concatenate_unused_tokens: int

    def __add__(self, other: "PackStatistics") -> "PackStatistics":
        theirs = asdict(other)
        return PackStatistics(**{name: value + theirs[name] for name, value in asdict(self).items()})


NOTHING = PackStatistics(*[0] * 10)


@dataclass(frozen=True)
class PackFile:
    """The packs of one shard; `blocks` holds the number of packs of every block."""

    packs: int
    pieces: int
    blocks: tuple[int, ...]
    file: FileEntry


@dataclass(frozen=True)
class PackManifest:
    """What `packs-<S>/manifest.json` says; `shards` is the checksum of the manifest of the shards."""

    shards: str
    sequence_length: int
    block_documents: int
    block_tokens: int
    block_bytes: int
    files: tuple[PackFile, ...]
    statistics: PackStatistics


@dataclass(frozen=True)
class PackIndex:
    """A `.packs` file as views of its bytes."""

    ends: np.ndarray  # int64 [packs], piece numbers
    starts: np.ndarray  # int64 [pieces], token offsets
    lengths: np.ndarray  # int32 [pieces], tokens

    def pieces(self, pack: int) -> tuple[tuple[int, int], ...]:
        """Return (token offset, tokens) of every piece of a pack, in the order of the shard."""
        first, stop = int(self.ends[pack - 1]) if pack else 0, int(self.ends[pack])
        return tuple(zip(self.starts[first:stop].tolist(), self.lengths[first:stop].tolist(), strict=True))


class PackSet:
    """The packs of one source for one sequence length. Files are mapped, verified and checked when first needed.

    Args:
        shards: the source.
        sequence_length: S, in tokens.

    Raises:
        DataError: there is no such pack index, it was made for other shards, or one of its files is missing or has
            the wrong size.
    """

    def __init__(self, shards: ShardSet, sequence_length: int) -> None:
        self.directory = pack_directory(shards.directory, sequence_length)
        self._shards = shards
        self.manifest = read_pack_manifest(shards, sequence_length)
        self.manifest_checksum = file_checksum(self.directory / MANIFEST)
        self.sequence_length = sequence_length
        self.count = sum(file.packs for file in self.manifest.files)
        self.block_ends = np.cumsum([packs for file in self.manifest.files for packs in file.blocks], dtype=np.int64)
        self._shard_ends = np.cumsum([file.packs for file in self.manifest.files], dtype=np.int64)
        self._open = functools.lru_cache(maxsize=_MOST_OPEN)(self._open_file)
        self._checked: set[int] = set()
        for file in self.manifest.files:
            check_size(self.directory, file.file)

    def locate(self, pack: int) -> tuple[int, int]:
        """Return (shard, pack in that shard) of a pack of the source."""
        assert 0 <= pack < self.count, (pack, self.count)
        shard = int(self._shard_ends.searchsorted(pack, side="right"))
        return shard, pack - (int(self._shard_ends[shard - 1]) if shard else 0)

    def pieces(self, pack: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Return the shard of a pack and (token offset, tokens) of each of its pieces.

        Raises:
            DataError: the file is damaged.
        """
        shard, number = self.locate(pack)
        return shard, self._open(shard).pieces(number)

    def check(self) -> None:
        """Verify every file from the first byte to the last.

        Raises:
            DataError: the first problem found.
        """
        for shard in range(len(self.manifest.files)):
            self._open(shard)

    def _open_file(self, shard: int) -> PackIndex:
        entry, path = self.manifest.files[shard], self.directory / self.manifest.files[shard].file.name
        mapped = map_file(self.directory, entry.file)
        index = parse_packs(path, mapped, entry, self.sequence_length)
        if shard not in self._checked:
            for block in range(-(-entry.file.bytes // self.manifest.block_bytes)):
                check_block(self.directory, entry.file, mapped, block, self.manifest.block_bytes)
            _check_consistent(path, index, self.sequence_length, self._shards.shard_tokens[shard])
            self._checked.add(shard)
        return index


def pack_directory(directory: Path, sequence_length: int) -> Path:
    """Return where the pack index of the shards in `directory` is."""
    return directory / f"packs-{sequence_length}"


def parse_packs(path: Path, data: memoryview, entry: PackFile, sequence_length: int) -> PackIndex:
    """View the bytes of a `.packs` file.

    Raises:
        DataError: wrong magic, version or sequence length, or counts that do not fit the file or its manifest.
    """
    if len(data) < HEADER.size:
        raise DataError(f"{path}: {len(data)} bytes are too few for a pack index; it is truncated")
    magic, version, length, packs, pieces = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DataError(f"{path}: starts with {magic!r}, not {MAGIC!r}; it is not a pack index")
    if version != VERSION:
        raise DataError(f"{path}: version {version} is not known; only {VERSION} is")
    if (length, packs, pieces) != (sequence_length, entry.packs, entry.pieces):
        raise DataError(
            f"{path}: has {packs} packs of {length} tokens and {pieces} pieces, but its manifest says {entry.packs} "
            f"of {sequence_length} and {entry.pieces}"
        )
    expected = HEADER.size + 8 * packs + 12 * pieces
    if expected != len(data):
        raise DataError(f"{path}: its counts take {expected} bytes, but the file has {len(data)}")
    return PackIndex(
        ends=np.frombuffer(data, "<i8", packs, HEADER.size),
        starts=np.frombuffer(data, "<i8", pieces, HEADER.size + 8 * packs),
        lengths=np.frombuffer(data, "<i4", pieces, HEADER.size + 8 * packs + 8 * pieces),
    )


def _check_consistent(path: Path, index: PackIndex, sequence_length: int, shard_tokens: int) -> None:
    """Check that the pieces lie in the shard, that no pack is too long, and that the tokens add up to the shard's."""
    total, first_piece = 0, 0
    for first in range(0, len(index.starts), _CHUNK):
        starts, lengths = index.starts[first : first + _CHUNK], index.lengths[first : first + _CHUNK].astype(np.int64)
        # compared before anything is added, so that no sum can overflow
        if lengths.min() < 1 or starts.min() < 0 or (starts > shard_tokens - lengths).any():
            raise DataError(f"{path}: a piece lies outside its shard of {shard_tokens} tokens; run llama-pack again")
        total += int(lengths.sum())
    for first in range(0, len(index.ends), _CHUNK):
        ends = index.ends[first : first + _CHUNK]
        firsts = np.concatenate(([first_piece], ends[:-1]))
        if (ends <= firsts).any() or ends[-1] > len(index.starts):
            raise DataError(f"{path}: its packs do not follow one another; run llama-pack again")
        sizes = np.add.reduceat(index.lengths[first_piece : ends[-1]].astype(np.int64), firsts - first_piece)
        if sizes.max() > sequence_length:
            raise DataError(f"{path}: a pack has {sizes.max()} tokens, more than {sequence_length}")
        first_piece = int(ends[-1])
    if first_piece != len(index.starts) or total != shard_tokens:
        raise DataError(
            f"{path}: its pieces have {total} tokens, but the shard has {shard_tokens}; run llama-pack again"
        )


def write_pack_manifest(directory: Path, manifest: PackManifest) -> None:
    """Write `directory/manifest.json`."""
    files = [
        {"packs": file.packs, "pieces": file.pieces, "blocks": list(file.blocks), "file": file_to_json(file.file)}
        for file in manifest.files
    ]
    value = {
        "version": VERSION,
        "shards": manifest.shards,
        "sequence_length": manifest.sequence_length,
        "block_documents": manifest.block_documents,
        "block_tokens": manifest.block_tokens,
        "block_bytes": manifest.block_bytes,
        "statistics": asdict(manifest.statistics),
        "files": files,
    }
    publish_sealed(directory / MANIFEST, value)


def read_pack_manifest(shards: ShardSet, sequence_length: int) -> PackManifest:
    """Read and check the manifest of a pack index; its files are not looked at.

    Raises:
        DataError: missing, damaged, contradicting itself, or made for other shards.
    """
    path = pack_directory(shards.directory, sequence_length) / MANIFEST
    command = f"llama-pack shards={shards.directory.parents[1]} sequence_length={sequence_length}"
    if not inside(path, shards.directory).exists():
        raise DataError(
            f"{path}: there are no packs of data.sequence_length={sequence_length}; make them with {command}, or use "
            "data.packing=concatenate"
        )
    value = read_sealed(path)
    try:
        manifest = PackManifest(
            shards=str(value["shards"]),
            sequence_length=checked_count(path, "sequence_length", value["sequence_length"], least=1),
            block_documents=checked_count(path, "block_documents", value["block_documents"], least=1),
            block_tokens=checked_count(path, "block_tokens", value["block_tokens"], least=1),
            block_bytes=checked_count(path, "block_bytes", value["block_bytes"], least=1),
            files=tuple(_pack_file(path, file) for file in value["files"]),
            statistics=PackStatistics(
                **{name: checked_count(path, name, count) for name, count in value["statistics"].items()}
            ),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: is not a manifest ({type(error).__name__}: {error}); run {command} again") from error
    if manifest.shards != file_checksum(shards.directory / MANIFEST):
        raise DataError(f"{path}: was made for other shards than those in {shards.directory}; run {command} again")
    if manifest.sequence_length != sequence_length or len(manifest.files) != len(shards.shard_tokens):
        raise DataError(
            f"{path}: has {len(manifest.files)} files for sequences of {manifest.sequence_length} tokens, not "
            f"{len(shards.shard_tokens)} for {sequence_length}; run {command} again"
        )
    for file in manifest.files:
        check_digests(path, file.file, manifest.block_bytes)
        if sum(file.blocks) != file.packs:
            raise DataError(f"{path}: {file.file.name} has {file.packs} packs, but its blocks have {sum(file.blocks)}")
    return manifest


def _pack_file(path: Path, value: dict) -> PackFile:
    return PackFile(
        packs=checked_count(path, "packs", value["packs"], least=1),
        pieces=checked_count(path, "pieces", value["pieces"], least=1),
        blocks=tuple(checked_count(path, "packs of a block", packs) for packs in value["blocks"]),
        file=file_from_json(path, value["file"], EXTENSION),
    )
