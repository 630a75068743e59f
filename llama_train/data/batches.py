"""Sample ids to tensors."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.shards.reader import ShardRoot, ShardSet
from llama_foundation.errors import ConfigError, DataError
from llama_train.config import DataConfig
from llama_train.data.windows import Windows
from llama_train.model.llama import IGNORE


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads; every tensor is int64 of shape [micro_batch_size, sequence_length].

    `labels` are the next tokens, `IGNORE` where the loss does not count. `document_ids` number the documents inside a
    row from 0; `positions` count from 0 inside each document (inside the row without document masks, where
    `document_ids` is None).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    document_ids: torch.Tensor | None
    positions: torch.Tensor


Window = tuple[np.ndarray, np.ndarray]
"""Token ids [sequence_length + 1] and where in them documents start (int64, may be empty)."""


def read_window(shards: ShardSet, shard: int, start: int, length: int) -> Window:
    """Read `length` tokens from token offset `start` of a shard file, and where documents start in them."""
    return shards.read(shard, start, length), shards.document_starts_within(shard, start, length)


def make_micro_batch(windows: Sequence[Window], document_masks: bool = True) -> MicroBatch:
    """Make tensors of windows of one length.

    With document masks, a document that starts inside a row starts at position 0 and has the next id, and the token
    before it has no label: nothing in its own document follows it. A row that begins inside a document counts from 0.
    """
    rows = np.stack([tokens for tokens, _ in windows]).astype(np.int64)
    tokens, labels = rows[:, :-1], rows[:, 1:].copy()
    columns = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    if not document_masks:
        return MicroBatch(_tensor(tokens), _tensor(labels), None, _tensor(columns))
    starts = np.zeros(rows.shape, dtype=bool)
    for row, (_, inside) in enumerate(windows):
        starts[row, inside] = True
    labels[starts[:, 1:]] = IGNORE
    later = starts[:, :-1].copy()
    later[:, 0] = False
    first_column = np.maximum.accumulate(np.where(later, columns, 0), axis=1)
    return MicroBatch(
        tokens=_tensor(tokens),
        labels=_tensor(labels),
        document_ids=_tensor(np.cumsum(later, axis=1)),
        positions=_tensor(columns - first_column),
    )


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


def check_divides(setting: str, batch_size: int, data_world: int, micro_batch_size: int) -> None:
    """Check that a batch divides into micro-batches of all ranks.

    Raises:
        ConfigError: naming the setting, the layout, and the values that would do.
    """
    per_pass = data_world * micro_batch_size
    if batch_size % per_pass == 0:
        return
    below, above = batch_size // per_pass * per_pass, -(-batch_size // per_pass) * per_pass
    sizes = f"{setting}={below} or {above}" if below else f"{setting}={above}"
    message = (
        f"{setting}={batch_size} does not divide into micro-batches of layout.micro_batch_size={micro_batch_size} on "
        f"{data_world} data-parallel ranks; use {sizes}"
    )
    if batch_size % data_world == 0:
        share = batch_size // data_world
        fitting = [str(size) for size in range(1, min(share, 64) + 1) if share % size == 0]
        message += f", or layout.micro_batch_size={', '.join(fitting)}"
    raise ConfigError(message)


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
        return self.sources[number], *self.windows[number].locate(int(self.window_numbers[position]))


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


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))
