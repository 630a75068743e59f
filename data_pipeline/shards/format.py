"""The Megatron indexed dataset, version 1: token ids in `.bin`, lengths and offsets in `.idx`.

Layout (NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py), all numbers little-endian:

    offset  type    what
    0       9 bytes b"MMIDIDX" and two zero bytes
    9       uint64  version, 1
    17      uint8   dtype code of the token ids: 4 is int32, 8 is uint16
    18      uint64  number of sequences, n
    26      uint64  number of document indices, m: documents + 1
    34      int32   n sequence lengths, in tokens
    34+4n   int64   n byte offsets of the sequences in the .bin file
    34+12n  int64   m sequence numbers: document d is the sequences from entry d up to entry d + 1

The `.bin` file is the token ids and nothing else.
"""

import functools
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_foundation.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
LONGEST_SEQUENCE = 2**31 - 1  # lengths are int32
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_CHUNK = 1 << 20  # entries worked on at a time
_LANDMARK = 128  # documents


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Return the type of the stored token ids: Megatron's rule, uint16 below 65,500 and int32 from there on."""
    return np.dtype("<u2") if vocabulary_size < 65500 else np.dtype("<i4")


def write_index(write: Callable[[bytes], object], dtype: np.dtype, lengths: np.ndarray) -> None:
    """Write an `.idx` in which every document is one sequence.

    Args:
        write: takes the next bytes of the file.
        dtype: of the token ids in the `.bin`.
        lengths: int32 [documents], in tokens.
    """
    documents = len(lengths)
    write(HEADER.pack(MAGIC, VERSION, _CODES[np.dtype(dtype)], documents, documents + 1))
    write(lengths.astype("<i4", copy=False).tobytes())
    offset = 0
    for first in range(0, documents, _CHUNK):
        ends = offset + np.cumsum(lengths[first : first + _CHUNK], dtype=np.int64) * dtype.itemsize
        write(np.concatenate(([offset], ends[:-1])).astype("<i8").tobytes())
        offset = int(ends[-1])
    for first in range(0, documents + 1, _CHUNK):
        write(np.arange(first, min(first + _CHUNK, documents + 1), dtype="<i8").tobytes())


@dataclass(frozen=True)
class Index:
    """An `.idx` as views of its bytes; nothing is copied, so a search touches only a few pages."""

    dtype: np.dtype
    lengths: np.ndarray  # int32 [sequences], tokens
    pointers: np.ndarray  # int64 [sequences], bytes
    document_indices: np.ndarray  # int64 [documents + 1], sequence numbers
    tokens: int

    @property
    def documents(self) -> int:
        return len(self.document_indices) - 1

    def document_starts(self) -> np.ndarray:
        """Return all token offsets: int64 [documents + 1], the last one the end of the shard."""
        return self.document_starts_between(0, self.documents)

    def document_starts_between(self, first: int, last: int) -> np.ndarray:
        """Return the token offsets of the documents from `first` up to `last` and the end: int64 [last - first + 1]."""
        sequences = np.array(self.document_indices[first : last + 1])
        low, high = int(sequences[0]), int(sequences[-1])
        pointers = self.pointers[low : high + 1]
        if high == len(self.pointers):
            pointers = np.append(pointers, self._byte(high))
        return pointers[sequences - low] // self.dtype.itemsize

    def document_starts_within(self, start: int, stop: int) -> np.ndarray:
        """Return the token offsets from `start` up to `stop` at which documents start: int64, ascending."""
        low = max(int(self._landmarks.searchsorted(start)) - 1, 0) * _LANDMARK
        high = min(int(self._landmarks.searchsorted(stop)) * _LANDMARK, self.documents)
        starts = self.document_starts_between(low, high)[:-1]
        return starts[starts.searchsorted(start) : starts.searchsorted(stop)]

    def document_at(self, token: int) -> int:
        """Return the document that token offset `token` belongs to, by binary search."""
        return bisect_right(self.document_indices, token * self.dtype.itemsize, key=self._byte) - 1

    @functools.cached_property
    def _landmarks(self) -> np.ndarray:
        """Where every 128th document starts: numpy copies an unaligned array whole before it searches it."""
        every = np.array(self.document_indices[: self.documents : _LANDMARK])
        return np.array([self._byte(sequence) for sequence in every.tolist()], np.int64) // self.dtype.itemsize

    def _byte(self, sequence: int) -> int:
        inside = sequence < len(self.pointers)
        return int(self.pointers[sequence]) if inside else self.tokens * self.dtype.itemsize


def parse_index(path: Path, data: memoryview, bin_bytes: int, check: bool = True) -> Index:
    """View `data`, the bytes of the `.idx` file `path`, as an index and check that it is consistent.

    Args:
        bin_bytes: size of the `.bin` file that it describes.
        check: False where the same bytes have passed before; the header is looked at anyway.

    Raises:
        DataError: wrong magic, version or dtype; counts that the file is too small or too large for; lengths,
            offsets and document indices that contradict each other or the `.bin` file.
    """
    if len(data) < HEADER.size:
        raise DataError(
            f"{path}: {len(data)} bytes are too few for an index of at least {HEADER.size}; it is truncated"
        )
    magic, version, code, sequences, entries = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DataError(f"{path}: starts with {magic!r}, not {MAGIC!r}; it is not a Megatron index")
    if version != VERSION:
        raise DataError(f"{path}: index version {version} is not known; only {VERSION} is")
    if code not in DTYPES:
        raise DataError(f"{path}: dtype code {code} is not supported; use 4 (int32) or 8 (uint16)")
    expected = HEADER.size + 12 * sequences + 8 * entries
    if expected != len(data):
        raise DataError(
            f"{path}: claims {sequences} sequences and {entries} document indices, which take {expected} bytes, "
            f"but the file has {len(data)}"
        )
    dtype = DTYPES[code]
    if bin_bytes % dtype.itemsize:
        raise DataError(
            f"{path}: the .bin file has {bin_bytes} bytes, not a multiple of {dtype.itemsize} ({dtype.name})"
        )
    index = Index(
        dtype=dtype,
        lengths=np.frombuffer(data, "<i4", sequences, HEADER.size),
        pointers=np.frombuffer(data, "<i8", sequences, HEADER.size + 4 * sequences),
        document_indices=np.frombuffer(data, "<i8", entries, HEADER.size + 12 * sequences),
        tokens=bin_bytes // dtype.itemsize,
    )
    if check:
        _check_consistent(path, index, bin_bytes)
    return index


def _check_consistent(path: Path, index: Index, bin_bytes: int) -> None:
    offset = 0
    for first in range(0, len(index.lengths), _CHUNK):
        lengths = index.lengths[first : first + _CHUNK].astype(np.int64)
        if lengths.min() < 0:
            raise DataError(f"{path}: a sequence has the negative length {lengths.min()}")
        ends = offset + np.cumsum(lengths) * index.dtype.itemsize
        starts = np.concatenate(([offset], ends[:-1]))
        wrong = np.flatnonzero(index.pointers[first : first + _CHUNK] != starts)
        if len(wrong):
            number = first + int(wrong[0])
            raise DataError(
                f"{path}: sequence {number} starts at byte {index.pointers[number]}, but the lengths before it add up "
                f"to {starts[wrong[0]]}"
            )
        offset = int(ends[-1])
    if offset != bin_bytes:
        raise DataError(f"{path}: its sequences take {offset} bytes, but the .bin file has {bin_bytes}")
    entries = index.document_indices
    if not len(entries) or entries[0] != 0 or entries[-1] != len(index.lengths):
        raise DataError(f"{path}: its document indices do not run from 0 to {len(index.lengths)}")
    for first in range(0, len(entries), _CHUNK):
        if (np.diff(entries[first : first + _CHUNK + 1]) < 0).any():
            raise DataError(f"{path}: its document indices do not increase")
