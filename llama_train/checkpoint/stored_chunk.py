"""Reading one chunk of a tensor from a rank's file, each block verified before it is used."""

import math
import os
from pathlib import Path

import torch

from llama_foundation.errors import CheckpointError
from llama_foundation.files import checksum
from llama_train.checkpoint.index import Index, rank_file

ROWS_BYTES = 64 * 2**20
"""A rectangle that is not whole rows of its chunk is read this many bytes at a time."""


class DamagedError(CheckpointError):
    """The bytes of a tensor cannot be read, or are not those that were written."""


class StoredChunk:
    """One chunk of one tensor on disk, read block by block."""

    def __init__(self, directory: Path, index: Index, name: str, position: int) -> None:
        table = index.chunks[name]
        self.name = name
        self.lengths = tuple(table.lengths[position].tolist())
        self.item_bytes = index.tensors[name].dtype.itemsize
        self.size = math.prod(self.lengths) * self.item_bytes
        self.start = int(table.start[position])
        self._index = index
        self._rank = int(table.rank[position])
        self._first_digest = int(table.digest[position])
        self.block_bytes = index.block_bytes
        self.path = directory / rank_file(self._rank)
        self._kept: tuple[int, memoryview] | None = None  # the last block that was read for only a part of it

    def read_into(self, target: torch.Tensor, inside: tuple[int, ...], extent: tuple[int, ...]) -> None:
        """Copy the rectangle at `inside` of this chunk, of shape `extent`, into `target`, a view of that shape."""
        try:
            # no symbolic link: a checkpoint must not make us read somewhere else
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedError(f"{self.path}: {error.strerror}; it holds a part of {self.name}") from error
        try:
            if not self.lengths:
                self._read(descriptor, _memory(target), 0)
                return
            row_bytes = math.prod(self.lengths[1:]) * self.item_bytes
            if extent[1:] == self.lengths[1:] and target.is_contiguous():
                self._read(descriptor, _memory(target), inside[0] * row_bytes)
                return
            rows = max(1, ROWS_BYTES // row_bytes)
            columns = tuple(slice(o, o + n) for o, n in zip(inside[1:], extent[1:], strict=True))
            for row in range(0, extent[0], rows):
                count = min(rows, extent[0] - row)
                whole = torch.empty((count, *self.lengths[1:]), dtype=target.dtype)
                self._read(descriptor, _memory(whole), (inside[0] + row) * row_bytes)
                target[row : row + count].copy_(whole[(slice(None), *columns)])
        except OSError as error:
            raise DamagedError(f"{self.path}: {error.strerror}, reading {self.name}") from error
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, target: memoryview, begin: int) -> None:
        """Fill `target` with the bytes of this chunk from byte `begin` on."""
        end = begin + len(target)
        for block in range(begin // self.block_bytes, -(-end // self.block_bytes)):
            first = block * self.block_bytes
            past = min(first + self.block_bytes, self.size)
            if begin <= first and past <= end:
                self._read_block(descriptor, block, target[first - begin : past - begin])
                continue
            if self._kept is None or self._kept[0] != block:
                scratch = memoryview(bytearray(past - first))
                self._read_block(descriptor, block, scratch)
                self._kept = (block, scratch)
            low, high = max(begin, first), min(end, past)
            target[low - begin : high - begin] = self._kept[1][low - first : high - first]

    def _read_block(self, descriptor: int, block: int, target: memoryview) -> None:
        done, begin = 0, self.start + block * self.block_bytes
        while done < len(target):
            count = os.preadv(descriptor, [target[done:]], begin + done)
            if not count:
                raise DamagedError(f"{self.path}: truncated at byte {begin + done}; it holds a part of {self.name}")
            done += count
        if checksum(target) != self._index.digest(self._rank, self._first_digest + block):
            raise DamagedError(
                f"{self.path}: damaged: bytes {begin} to {begin + len(target)}, a part of {self.name}, do not have "
                "their checksum; use an earlier checkpoint"
            )


def _memory(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
