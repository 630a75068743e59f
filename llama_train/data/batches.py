"""Sample ids to tensors."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.shards.reader import ShardRoot, ShardSet
from llama_foundation.errors import DataError
from llama_train.config import DataConfig
from llama_train.data.windows import Piece, Windows
from llama_train.model.llama import IGNORE


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads; every tensor is int32 of shape [micro_batch_size, sequence_length].

    Half the memory to fill and to copy to a device that int64 would take; what needs int64 widens it there.

    `labels` are the next tokens, `IGNORE` where the loss does not count. `document_ids` number the documents inside a
    row from 0; `positions` count from 0 inside each document (inside the row without document masks, where
    `document_ids` is None).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    document_ids: torch.Tensor | None
    positions: torch.Tensor


_DTYPE = np.dtype(np.int32)
_BLOCK_BYTES = 8 << 20

Window = tuple[np.ndarray, np.ndarray]
"""Token ids [sequence_length + 1] and where in them documents start (int64, may be empty)."""


def read_window(shards: ShardSet, shard: int, start: int, length: int) -> Window:
    """Read `length` tokens from token offset `start` of a shard file, and where documents start in them."""
    return shards.read(shard, start, length), shards.document_starts_within(shard, start, length)


def read_pack(shards: ShardSet, shard: int, pieces: Sequence[Piece]) -> list[np.ndarray]:
    """Read the token ids of every piece of a pack."""
    return [shards.read(shard, start, length) for start, length in pieces]


def row_blocks(rows: int, sequence_length: int, together: int) -> Iterator[np.ndarray]:
    """Yield memory for the four tensors of `together` rows at a time, until there is some for all `rows`.

    It is allocated in blocks of up to 8 MiB: 64 KiB at a time, the memory went back to the system after every step, and
    a third of the loader's time was its page faults.
    """
    per_block = max(together, _BLOCK_BYTES // (4 * _DTYPE.itemsize * sequence_length) // together * together)
    for first in range(0, rows, per_block):
        count = min(per_block, rows - first)
        block = np.empty((4, count, sequence_length), _DTYPE)
        for row in range(0, count, together):
            yield block[:, row : row + together]


def make_micro_batch(
    windows: Sequence[Window], document_masks: bool = True, memory: np.ndarray | None = None
) -> MicroBatch:
    """Make tensors of windows of one length, in `memory` (int32 [4, windows, length]) if it is given.

    With document masks, a document that starts inside a row starts at position 0 and has the next id, and the token
    before it has no label: nothing in its own document follows it. A row that begins inside a document counts from 0.
    """
    length = len(windows[0][0]) - 1
    memory = _rows(memory, len(windows), length)
    tokens, labels, document_ids, positions = memory
    for row, (window, starts) in enumerate(windows):
        tokens[row], labels[row] = window[:-1], window[1:]
        if not document_masks:
            positions[row] = _count_to(length)
            continue
        inside = starts[starts > 0]
        labels[row, inside - 1] = IGNORE
        _number(document_ids[row], positions[row], np.concatenate(([0], inside[inside < length])))
    token_tensor, label_tensor, id_tensor, position_tensor = torch.from_numpy(memory).unbind()
    return MicroBatch(token_tensor, label_tensor, id_tensor if document_masks else None, position_tensor)


def make_packed_micro_batch(
    packs: Sequence[Sequence[np.ndarray]], sequence_length: int, memory: np.ndarray | None = None
) -> MicroBatch:
    """Make tensors of packs of pieces, in `memory` (int32 [4, packs, sequence_length]) if it is given.

    A piece is a document of its own: it starts at position 0, also where it continues one that was cut, has the next
    id, and its last token has no label. What is left of a row is padding: token 0, no labels, an id of its own.
    """
    memory = _rows(memory, len(packs), sequence_length)
    tokens, labels, document_ids, positions = memory
    for row, pieces in enumerate(packs):
        ends = np.array(list(itertools.accumulate(len(piece) for piece in pieces)))
        used = int(ends[-1])
        np.concatenate(pieces, out=tokens[row, :used])
        tokens[row, used:] = 0
        labels[row, : used - 1] = tokens[row, 1:used]
        labels[row, ends - 1] = IGNORE
        labels[row, used:] = IGNORE
        _number(document_ids[row], positions[row], np.concatenate(([0], ends[ends < sequence_length])))
    return MicroBatch(*torch.from_numpy(memory).unbind())


def _rows(memory: np.ndarray | None, rows: int, length: int) -> np.ndarray:
    memory = np.empty((4, rows, length), _DTYPE) if memory is None else memory
    assert memory.shape == (4, rows, length), memory.shape
    return memory


def _number(document_ids: np.ndarray, positions: np.ndarray, firsts: np.ndarray) -> None:
    """Fill a row's document ids and positions, given the columns at which documents begin, 0 among them."""
    stops = np.concatenate((firsts[1:], [len(positions)]))
    sizes = stops - firsts
    document_ids[:] = np.repeat(_count_to(len(positions))[: len(firsts)], sizes)
    np.subtract(_count_to(len(positions)), np.repeat(firsts.astype(_DTYPE), sizes), out=positions)


@functools.lru_cache(maxsize=4)
def _count_to(stop: int) -> np.ndarray:
    return np.arange(stop, dtype=_DTYPE)


def validation_micro_batches(
    root: ShardRoot, data: DataConfig, source: str, batches: int, data_rank: int, data_world: int, micro_batch_size: int
) -> Iterator[MicroBatch]:
    """Read one rank's part of the windows that `source` has in `batches` validation batches: always the same ones.

    The windows of each source of the split `validation` are taken in order, and the sources take turns in proportion
    to their windows. Batches have data.batch_size sequences of data.sequence_length. Every rank gets as many
    micro-batches; rows that fill them up have no label that counts.

    Raises:
        DataError: there are fewer windows than asked for, or a shard is damaged.
    """
    check_validation(root, data, batches)
    ordered = _validation_windows(root, data.sequence_length)
    shards = root.open("validation", source)
    among = ordered.source_numbers[: batches * data.batch_size]
    positions = np.flatnonzero(among == ordered.sources.index(source)).tolist()
    per_pass = data_world * micro_batch_size
    for begin in range(0, len(positions), per_pass):
        own = range(begin, begin + per_pass)[data_rank * micro_batch_size : (data_rank + 1) * micro_batch_size]
        windows = []
        for number in own:
            _, shard, start = ordered.locate(positions[min(number, len(positions) - 1)])
            windows.append(read_window(shards, shard, start, data.sequence_length + 1))
        micro_batch = make_micro_batch(windows, data.document_masks)
        micro_batch.labels[[number >= len(positions) for number in own]] = IGNORE
        yield micro_batch


def check_validation(root: ShardRoot, data: DataConfig, batches: int) -> None:
    """Check that the validation shards hold so many batches.

    Raises:
        DataError: they hold fewer; says how many there are.
    """
    available = len(_validation_windows(root, data.sequence_length).window_numbers)
    if batches * data.batch_size > available:
        raise DataError(
            f"{root.path}: the validation shards hold {available} sequences of data.sequence_length="
            f"{data.sequence_length}, but validation.batches={batches} of data.batch_size={data.batch_size} take "
            f"{batches * data.batch_size}; use validation.batches={available // data.batch_size} or less, or hold out "
            "more documents (llama-data validation.fraction)"
        )


@dataclass(frozen=True)
class _ValidationWindows:
    """Every validation window in the order of evaluation, as (source number, window of that source)."""

    sources: list[str]
    windows: list[Windows]
    source_numbers: np.ndarray
    window_numbers: np.ndarray

    def locate(self, position: int) -> tuple[str, int, int]:
        """Return (source, shard, token offset)."""
        number = int(self.source_numbers[position])
        shard, ((start, _),) = self.windows[number].locate(int(self.window_numbers[position]))
        return self.sources[number], shard, start


@functools.lru_cache(maxsize=2)
def _validation_windows(root: ShardRoot, sequence_length: int) -> _ValidationWindows:
    sources = root.sources("validation")
    windows = [Windows(root.open("validation", source).shard_tokens, sequence_length) for source in sources]
    counts = [each.count for each in windows]
    source_numbers = np.repeat(np.arange(len(sources)), counts)
    window_numbers = np.concatenate([np.arange(count) for count in counts] or [np.arange(0)])
    progress = (window_numbers + 0.5) / np.repeat(counts, counts)
    turns = np.lexsort((source_numbers, progress))
    return _ValidationWindows(sources, windows, source_numbers[turns], window_numbers[turns])
