"""Where the samples of one source lie in its shards: windows (concatenate and cut), or packs (best fit).

A window of sequence length S is S + 1 tokens, S inputs and the same S shifted by one as labels, and the next window
starts S tokens later. T tokens in a row hold (T - 1) // S windows. A window never crosses a shard file.

A pack is the pieces of documents that `llama-pack` has put together: at most S tokens in all, from one shard file.

If a run uses several sequence lengths, each owns one contiguous range of every source: of the tokens of every shard
file for windows, of the blocks of documents for packs.
"""

from collections.abc import Sequence

import numpy as np

from data_pipeline.shards.packs import PackSet

Piece = tuple[int, int]
"""(token offset in a shard file, tokens), of inputs."""

WHOLE = (0, 1, 1)


class Windows:
    """The windows of one source for one sequence length.

    Args:
        shard_tokens: tokens of every shard file.
        sequence_length: S, in tokens.
        share: (a, b, whole): of a shard of T tokens, those from T * a // whole up to T * b // whole are used.
    """

    def __init__(self, shard_tokens: Sequence[int], sequence_length: int, share: tuple[int, int, int] = WHOLE) -> None:
        low, high, whole = share
        starts = [tokens * low // whole for tokens in shard_tokens]
        stops = [tokens * high // whole for tokens in shard_tokens]
        counts = [max(stop - start - 1, 0) // sequence_length for start, stop in zip(starts, stops, strict=True)]
        self.sequence_length = sequence_length
        self.count = sum(counts)
        self._starts = np.array(starts, dtype=np.int64)
        self._ends = np.cumsum(counts, dtype=np.int64)

    def locate(self, window: int) -> tuple[int, tuple[Piece, ...]]:
        """Return the shard of a window, and the piece of it that its inputs are."""
        assert 0 <= window < self.count, (window, self.count)
        shard = int(self._ends.searchsorted(window, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        start = int(self._starts[shard]) + (window - before) * self.sequence_length
        return shard, ((start, self.sequence_length),)


class Packs:
    """The packs of one source for one sequence length.

    Args:
        packs: the pack index.
        share: (a, b, whole): of n blocks, those from n * a // whole up to n * b // whole are used.
    """

    def __init__(self, packs: PackSet, share: tuple[int, int, int] = WHOLE) -> None:
        low, high, whole = share
        bounds = np.concatenate(([0], packs.block_ends))
        blocks = len(packs.block_ends)
        self.sequence_length = packs.sequence_length
        self._packs = packs
        self._first = int(bounds[blocks * low // whole])
        self.count = int(bounds[blocks * high // whole]) - self._first

    def locate(self, pack: int) -> tuple[int, tuple[Piece, ...]]:
        """Return the shard of a pack and its pieces.

        Raises:
            DataError: the pack index is damaged.
        """
        assert 0 <= pack < self.count, (pack, self.count)
        return self._packs.pieces(self._first + pack)
