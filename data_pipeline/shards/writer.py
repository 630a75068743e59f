"""Writes the shards of one source, and the root that names all sources.

with ShardSetWriter(output / "train" / "web", fingerprint, vocabulary_size=32000) as writer:
    writer.add(token_ids, provenance)
write_root(output, tokenizer, {"train": ["web"]})
"""

import array
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.shards.format import LONGEST_SEQUENCE, token_dtype, write_index
from data_pipeline.shards.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    ShardEntry,
    ShardTokenizer,
    SourceEntry,
    check_name,
    file_checksum,
    read_manifest,
    write_manifest,
    write_shards_json,
)
from llama_foundation.errors import DataError
from llama_foundation.files import BLOCK_BYTES, checksum, fsync_directory, publish_directory

PROVENANCE = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),  # 32 hexadecimal digits
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("language", pa.string()),  # as the input names it; null where it does not
        pa.field("first_words", pa.string(), nullable=False),
    ]
)
"""The columns that every `.provenance.parquet` has; its rows are the documents of the shard, in order."""

_ROW_GROUP = 4096  # documents; what a reader loads to answer for one


class ShardSetWriter:
    """Writes one source's documents into shards; the directory appears, whole, when the block ends without error.

    Memory stays below three blocks of 16 MiB, 4 bytes for every document of the shard being written, and the
    provenance of 4,096 documents.

    Args:
        directory: what appears at the end; it must not exist.
        tokenizer_fingerprint: of the tokenizer that made the ids.
        vocabulary_size: every token id is below it.
        max_shard_bytes: a `.bin` file is closed before it would exceed this; only a longer document exceeds it.
        provenance: the columns of the sidecar: those of `PROVENANCE`, and any others behind them.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer_fingerprint: str,
        vocabulary_size: int,
        max_shard_bytes: int = 8 << 30,
        provenance: pa.Schema = PROVENANCE,
    ) -> None:
        self._directory = Path(directory)
        self._temporary = self._directory.with_name(f".{self._directory.name}.{os.getpid()}.partial")
        self._fingerprint = tokenizer_fingerprint
        self._vocabulary_size = vocabulary_size
        self._dtype = token_dtype(vocabulary_size)
        self._max_shard_bytes = max_shard_bytes
        self._provenance = provenance
        self._shards: list[ShardEntry] = []
        self._open: _OpenShard | None = None

    def __enter__(self) -> "ShardSetWriter":
        if os.path.lexists(self._directory):
            raise DataError(f"{self._directory}: already exists; remove it or choose another output directory")
        try:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise cannot_write(self._temporary, error) from error
        return self

    def add(self, token_ids: np.ndarray, provenance: Mapping[str, Any]) -> None:
        """Append one document.

        Args:
            token_ids: whole numbers [tokens], bos and eos included.
            provenance: a value for every column of the sidecar; `url` and `language` may be None.

        Raises:
            DataError: no tokens, too many for the format, an id outside the vocabulary, or the disk refuses.
        """
        assert token_ids.ndim == 1, token_ids.shape
        assert token_ids.dtype.kind in "iu", token_ids.dtype
        assert set(provenance) == set(self._provenance.names), sorted(provenance)
        where = f"{provenance['file']} row {provenance['row']}"
        if not 0 < len(token_ids) <= LONGEST_SEQUENCE:
            raise DataError(f"{where}: {len(token_ids)} tokens; a document has between 1 and {LONGEST_SEQUENCE}")
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high >= self._vocabulary_size:
            raise DataError(
                f"{where}: token id {low if low < 0 else high} is outside the vocabulary of {self._vocabulary_size}; "
                "it was encoded by another tokenizer"
            )
        size = len(token_ids) * self._dtype.itemsize
        if self._open and self._open.bytes + size > self._max_shard_bytes:
            self._close_shard()
        if self._open is None:
            self._open = _OpenShard(self._temporary, len(self._shards), self._dtype, self._provenance)
        self._open.add(token_ids, provenance)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._open:
                self._open.abandon()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _finish(self) -> None:
        if self._open:
            self._close_shard()
        manifest = Manifest(
            tokenizer_fingerprint=self._fingerprint,
            vocabulary_size=self._vocabulary_size,
            dtype=self._dtype.name,
            documents=sum(shard.documents for shard in self._shards),
            tokens=sum(shard.tokens for shard in self._shards),
            shards=tuple(self._shards),
            block_bytes=BLOCK_BYTES,
        )
        try:
            write_manifest(self._temporary, manifest)
            publish_directory(self._temporary, self._directory)
        except OSError as error:
            raise cannot_write(self._directory, error) from error

    def _close_shard(self) -> None:
        assert self._open is not None
        self._shards.append(self._open.close())
        self._open = None


class _OpenShard:
    """The shard being written."""

    def __init__(self, directory: Path, number: int, dtype: np.dtype, provenance: pa.Schema) -> None:
        stem = f"shard-{number:05d}"
        self._dtype = dtype
        self._schema = provenance
        self._lengths = array.array("i")
        self._rows: dict[str, list] = {name: [] for name in provenance.names}
        self._tokens = BlockFile(directory / f"{stem}.bin")
        self._index = BlockFile(directory / f"{stem}.idx")
        self._provenance = BlockFile(directory / f"{stem}.provenance.parquet")
        self._parquet = pq.ParquetWriter(pa.PythonFile(self._provenance, mode="w"), provenance, compression="zstd")
        self.bytes = 0

    def add(self, token_ids: np.ndarray, provenance: Mapping[str, Any]) -> None:
        data = token_ids.astype(self._dtype, copy=False).tobytes()
        self._tokens.write(data)
        self.bytes += len(data)
        self._lengths.append(len(token_ids))
        for name, values in self._rows.items():
            values.append(provenance[name])
        if len(self._rows["row"]) == _ROW_GROUP:
            self._write_rows()

    def close(self) -> ShardEntry:
        if self._rows["row"]:
            self._write_rows()
        self._parquet.close()
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        write_index(self._index.write, self._dtype, lengths)
        return ShardEntry(
            documents=len(lengths),
            tokens=self.bytes // self._dtype.itemsize,
            files={
                "bin": self._tokens.finish(),
                "idx": self._index.finish(),
                "provenance.parquet": self._provenance.finish(),
            },
        )

    def abandon(self) -> None:
        """Close what is open without a word; the directory is about to be removed."""
        for file in (self._tokens, self._index, self._provenance):
            file.abandon()
        self._parquet.close()  # else it closes itself later, and complains

    def _write_rows(self) -> None:
        self._parquet.write_table(pa.table(self._rows, schema=self._schema), row_group_size=_ROW_GROUP)
        for values in self._rows.values():
            values.clear()


class BlockFile:
    """A file written in blocks of `BLOCK_BYTES`, whose checksums are taken on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer = bytearray()
        self._blocks: list[str] = []
        self._size = 0
        self._abandoned = False
        try:
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(path, error) from error

    closed = False  # pyarrow asks

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        written = len(view)
        if self._abandoned:
            return written
        while view:
            room = BLOCK_BYTES - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == BLOCK_BYTES:
                self._write_block()
        self._size += written
        return written

    def flush(self) -> None:
        """Nothing to do: a block is written when it is full."""

    def close(self) -> None:
        """Nothing to do: pyarrow closes what it is given, `finish` closes the file."""

    def tell(self) -> int:
        return self._size

    def finish(self) -> FileEntry:
        if self._buffer:
            self._write_block()
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise cannot_write(self._path, error) from error
        return FileEntry(self._path.name, self._size, bytes.fromhex("".join(self._blocks)))

    def abandon(self) -> None:
        self._abandoned = True
        self._file.close()

    def _write_block(self) -> None:
        self._blocks.append(checksum(self._buffer))
        view = memoryview(self._buffer)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._buffer = bytearray()


def write_root(directory: Path, tokenizer: Mapping[str, Any], splits: Mapping[str, Sequence[str]]) -> None:
    """Write `directory/shards.json`, the entry point, after everything it names.

    Args:
        tokenizer: file (relative to `directory`), fingerprint, vocabulary_size, bos_id, eos_id.
        splits: split → names of its sources, whose shards are in `directory/<split>/<source>`.

    Raises:
        DataError: a name is not plain, a shard set or the tokenizer file is missing, or a shard set was made by
            another tokenizer.
    """
    directory = Path(directory)
    described = ShardTokenizer(**tokenizer)
    if not (directory / described.file).is_file():
        raise DataError(f"{directory / described.file}: the tokenizer file does not exist")
    entries: dict[str, dict[str, SourceEntry]] = {}
    for split, sources in sorted(splits.items()):
        entries[check_name("split", split)] = {}
        for source in sorted(sources):
            place = directory / split / check_name("source", source)
            manifest = read_manifest(place)
            if (manifest.tokenizer_fingerprint, manifest.vocabulary_size) != (
                described.fingerprint,
                described.vocabulary_size,
            ):
                raise DataError(
                    f"{place}: made by tokenizer {manifest.tokenizer_fingerprint} with {manifest.vocabulary_size} "
                    f"tokens, not by {described.fingerprint} with {described.vocabulary_size}"
                )
            entries[split][source] = SourceEntry(manifest.documents, manifest.tokens, file_checksum(place / MANIFEST))
        if sources:
            fsync_directory(directory / split)
    write_shards_json(directory, described, entries)


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error to raise where the disk refuses."""
    return DataError(f"{path}: cannot be written: {error.strerror or error}; nothing of it is left")
