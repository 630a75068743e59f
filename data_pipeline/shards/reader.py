"""Reads shards by mmap: opening looks at sizes and manifests, a block is verified when it is first read."""

from __future__ import annotations

import difflib
import functools
import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.shards.format import Index, parse_index
from data_pipeline.shards.manifest import (
    MANIFEST,
    ROOT,
    FileEntry,
    Manifest,
    ShardTokenizer,
    SourceEntry,
    file_checksum,
    inside,
    read_manifest,
    read_shards_json,
)
from llama_foundation.errors import DataError
from llama_foundation.files import checksum

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MOST_OPEN = 64  # shards of one set; each holds two file descriptors, and 1,024 is a common limit


@dataclass(frozen=True)
class _Shard:
    """An open shard. `tokens` is a view of the mapped file."""

    tokens: np.ndarray
    tokens_map: memoryview
    index: Index


class ShardSet:
    """The shards of one source. Files are mapped when first needed and never copied.

    Args:
        directory: holds `manifest.json`.
        verify: check a block's checksum when it is first read.

    Raises:
        DataError: a file is missing, has another size than the manifest says, or leads out of `directory`.
    """

    def __init__(self, directory: Path, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory)
        self.dtype = np.dtype(self.manifest.dtype)
        self.shard_tokens = [shard.tokens for shard in self.manifest.shards]
        self.documents = self.manifest.documents
        self.tokens = self.manifest.tokens
        self._verify = verify
        self._verified: dict[str, np.ndarray] = {}
        self._consistent: set[int] = set()  # shards whose index has passed its check: they are opened again and again
        self._open = functools.lru_cache(maxsize=_MOST_OPEN)(self._open_shard)
        self._provenance = functools.lru_cache(maxsize=4)(self._open_provenance)
        self._row_group = functools.lru_cache(maxsize=4)(self._read_row_group)
        for shard in self.manifest.shards:
            for file in shard.files.values():
                check_size(self.directory, file)

    def read(self, shard: int, start: int, count: int) -> np.ndarray:
        """Return `count` tokens from token offset `start` of a shard, as a read-only view of the file.

        Raises:
            DataError: a block does not match its checksum.
        """
        assert 0 <= start < start + count <= self.shard_tokens[shard], (shard, start, count)
        opened = self._open(shard)
        size = self.dtype.itemsize
        self._check_blocks(self.manifest.shards[shard].files["bin"], opened.tokens_map, start * size, count * size)
        return opened.tokens[start : start + count]

    def document_starts(self, shard: int) -> np.ndarray:
        """Return the token offset of every document of a shard and the shard's end: int64 [documents + 1]."""
        return self._open(shard).index.document_starts()

    def document_starts_between(self, shard: int, first: int, last: int) -> np.ndarray:
        """Return the token offsets of the documents from `first` up to `last`, and the end of the last of them."""
        return self._open(shard).index.document_starts_between(first, last)

    def document_starts_within(self, shard: int, start: int, count: int) -> np.ndarray:
        """Return where documents start within `count` tokens from `start`, relative to `start`: int64, ascending.

        Found by binary search in the mapped index: nothing is loaded for the rest of the shard.
        """
        return self._open(shard).index.document_starts_within(start, start + count) - start

    def documents_within(self, shard: int, start: int, count: int) -> range:
        """Return the numbers of the documents that `count` tokens from `start` belong to."""
        index = self._open(shard).index
        return range(index.document_at(start), index.document_at(start + count - 1) + 1)

    def provenance(self, shard: int, document: int) -> dict[str, Any]:
        """Return where a document comes from: record_id, source, file, row, url, language, first_words, and more where
        the shards have more.

        Raises:
            DataError: the provenance file is damaged.
        """
        assert 0 <= document < self.manifest.shards[shard].documents, (shard, document)
        _, ends = self._provenance(shard)
        group = int(np.searchsorted(ends, document, side="right"))
        rows = self._row_group(shard, group)
        return rows.slice(document - (int(ends[group - 1]) if group else 0), 1).to_pylist()[0]

    def _open_shard(self, shard: int) -> _Shard:
        entry = self.manifest.shards[shard]
        binary, index_file = entry.files["bin"], entry.files["idx"]
        index_map = map_file(self.directory, index_file)
        self._check_blocks(index_file, index_map, 0, index_file.bytes)
        index = parse_index(self.directory / index_file.name, index_map, binary.bytes, shard not in self._consistent)
        self._consistent.add(shard)
        if index.dtype != self.dtype or index.documents != entry.documents:
            raise DataError(
                f"{self.directory / index_file.name}: has {index.documents} documents of {index.dtype.name}, but the "
                f"manifest says {entry.documents} of {self.dtype.name}"
            )
        tokens_map = map_file(self.directory, binary)
        return _Shard(np.frombuffer(tokens_map, self.dtype.newbyteorder("<")), tokens_map, index)

    def _open_provenance(self, shard: int) -> tuple[pq.ParquetFile, np.ndarray]:
        entry = self.manifest.shards[shard]
        file = entry.files["provenance.parquet"]
        mapped = map_file(self.directory, file)
        self._check_blocks(file, mapped, 0, file.bytes)
        return open_provenance(self.directory / file.name, mapped, entry.documents)

    def _read_row_group(self, shard: int, group: int) -> pa.Table:
        import pyarrow as pa

        parquet, _ = self._provenance(shard)
        try:
            rows = parquet.read_row_group(group)
            rows.validate(full=True)  # text may be anything
            return rows
        except (pa.ArrowException, OSError) as error:
            name = self.manifest.shards[shard].files["provenance.parquet"].name
            raise DataError(f"{self.directory / name}: cannot be read: {error}") from error

    def _check_blocks(self, file: FileEntry, data: memoryview, start: int, count: int) -> None:
        """Verify the blocks of `file` that hold `count` bytes from `start`, unless they have been verified before."""
        if not self._verify:
            return
        size = self.manifest.block_bytes
        verified = self._verified.setdefault(file.name, np.zeros(-(-file.bytes // size), dtype=bool))
        for block in range(start // size, (start + count - 1) // size + 1):
            if not verified[block]:
                check_block(self.directory, file, data, block, size)
                verified[block] = True


class ShardRoot:
    """A whole output directory of llama-data; shard sets are opened when asked for.

    Args:
        path: holds `shards.json`.
        verify: check a block's checksum when it is first read.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = Path(path)
        self.tokenizer: ShardTokenizer
        self._splits: dict[str, dict[str, SourceEntry]]
        self.tokenizer, self._splits = read_shards_json(self.path)
        self._verify = verify
        self._sets: dict[tuple[str, str], ShardSet] = {}
        if not inside(self.tokenizer_path, self.path).is_file():
            raise DataError(f"{self.tokenizer_path}: the tokenizer file that {self.path / ROOT} names does not exist")
        digest = hashlib.sha256(file_checksum(self.path / ROOT).encode())
        for split, sources in sorted(self._splits.items()):
            for source, entry in sorted(sources.items()):
                manifest = inside(self.path / split / source, self.path) / MANIFEST
                found = file_checksum(manifest)
                if found != entry.manifest:
                    raise DataError(
                        f"{manifest}: is not the one {self.path / ROOT} was written for; run llama-data again"
                    )
                digest.update(found.encode())
        self.fingerprint = digest.hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        return self.path / self.tokenizer.file

    @property
    def splits(self) -> list[str]:
        return sorted(self._splits)

    def sources(self, split: str) -> list[str]:
        """Return the names of a split's sources, sorted; none if there is no such split."""
        return sorted(self._splits.get(split, {}))

    def open(self, split: str, source: str) -> ShardSet:
        """Return the shards of one source, opened once.

        Raises:
            DataError: there is no such source, or its files are missing or have the wrong size.
        """
        if source not in self._splits.get(split, {}):
            names = self.sources(split)
            close = difflib.get_close_matches(source, names, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(f"{self.path}: no source {source!r} in {split}; {hint}Known: {', '.join(names) or 'none'}")
        if (split, source) not in self._sets:
            shards = ShardSet(self.path / split / source, self._verify)
            made_by = (shards.manifest.tokenizer_fingerprint, shards.manifest.vocabulary_size)
            if made_by != (self.tokenizer.fingerprint, self.tokenizer.vocabulary_size):
                raise DataError(
                    f"{shards.directory}: made by tokenizer {made_by[0]} with {made_by[1]} tokens, but "
                    f"{self.path / ROOT} names {self.tokenizer.fingerprint} with {self.tokenizer.vocabulary_size}"
                )
            self._sets[split, source] = shards
        return self._sets[split, source]


def open_root(path: Path | str, verify: bool = True) -> ShardRoot:
    """Open the output directory of llama-data.

    Raises:
        DataError: `shards.json` or a manifest is missing, damaged, or does not belong to the other.
    """
    return ShardRoot(Path(path), verify)


def check_size(directory: Path, file: FileEntry) -> None:
    """Check that a file exists inside `directory` and has the size that the manifest gives.

    Raises:
        DataError: it does not.
    """
    path = inside(directory / file.name, directory)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; the manifest names it, copy it again or make the shards again"
        ) from error
    if size != file.bytes:
        state = "truncated" if size < file.bytes else "too long"
        raise DataError(f"{path}: has {size} bytes, but the manifest says {file.bytes}; it is {state}")


def map_file(directory: Path, file: FileEntry) -> memoryview:
    """Map a whole file for reading."""
    check_size(directory, file)
    with open(directory / file.name, "rb") as opened:
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def check_block(directory: Path, file: FileEntry, data: memoryview, block: int, block_bytes: int) -> None:
    """Compare one block of a mapped file with its checksum.

    Raises:
        DataError: naming the file and the bytes that differ from what was written.
    """
    start = block * block_bytes
    stop = min(start + block_bytes, file.bytes)
    if checksum(data[start:stop]) != file.digest(block):
        raise DataError(
            f"{directory / file.name}: bytes {start} to {stop} do not match their checksum; the file is damaged, copy "
            "it again or make the shards again"
        )


def open_provenance(path: Path, mapped: memoryview, documents: int) -> tuple[pq.ParquetFile, np.ndarray]:
    """Open a provenance file; return it and the cumulative row counts of its row groups.

    Raises:
        DataError: it is not Parquet or does not have a row for every document.
    """
    import pyarrow as pa  # late: only who asks for a document's source needs it, a training start does not
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    metadata = parquet.metadata
    if metadata.num_rows != documents:
        raise DataError(f"{path}: has {metadata.num_rows} rows, but the shard has {documents} documents")
    if "language" not in parquet.schema_arrow.names:
        raise DataError(f"{path}: does not say the documents' languages; an older llama-data wrote it, run it again")
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    return parquet, ends
