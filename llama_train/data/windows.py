"""Concatenate and cut: where the windows of one source lie in its shards.

A window of sequence length S is S + 1 tokens, S inputs and the same S shifted by one as labels, and the next window
starts S tokens later. T tokens in a row hold (T - 1) // S windows. A window never crosses a shard file.

If a run uses several sequence lengths, each owns one contiguous token range of every shard file.
"""

from collections.abc import Sequence

import numpy as np


class Windows:
    """The windows of one source for one sequence length.

    Args:
        shard_tokens: tokens of every shard file.
        sequence_length: S, in tokens.
        share: (a, b, whole): of a shard of T tokens, those from T * a // whole up to T * b // whole are used.
    """

    def __init__(
        self, shard_tokens: Sequence[int], sequence_length: int, share: tuple[int, int, int] = (0, 1, 1)
    ) -> None:
        low, high, whole = share
        starts = [tokens * low // whole for tokens in shard_tokens]
        stops = [tokens * high // whole for tokens in shard_tokens]
        counts = [max(stop - start - 1, 0) // sequence_length for start, stop in zip(starts, stops, strict=True)]
        self.sequence_length = sequence_length
        self.count = sum(counts)
        self._starts = np.array(starts, dtype=np.int64)
        self._ends = np.cumsum(counts, dtype=np.int64)

    def locate(self, window: int) -> tuple[int, int]:
        """Return (shard, token offset in it) of a window."""
        assert 0 <= window < self.count, (window, self.count)
        shard = int(np.searchsorted(self._ends, window, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return shard, int(self._starts[shard]) + (window - before) * self.sequence_length
