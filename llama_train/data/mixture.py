"""Which source sample i comes from, so that every block of 4,096 samples has the right share of each.

The weights become whole quotas over a cycle of 4,096 blocks (2**24 samples) by largest remainder. Put the sources'
quotas Q one after the other on a line, P[s] where source s ends. Block b with phase p(b) takes from source s

    floor((P[s] + p) / 4096) - floor((P[s - 1] + p) / 4096)

samples: its share of a block, rounded down or up, and 4,096 over all sources. The phases are 0 to 4,095 in
bit-reversed order (van der Corput 1935), so that what was rounded is made good within a few blocks; over a cycle,
Hermite's identity (the sum over p of floor((P + p) / n) is P) makes the counts exactly Q. Inside a block the samples
are shuffled.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from llama_train.data.permutation import permutation_key, permute_array

BLOCK = 4096
"""Samples."""

CYCLE = 4096
"""Blocks after which the quotas repeat."""


class Mixture:
    """The sources of one segment's samples.

    Args:
        weights: one per source, above 0; only their ratios count.
        seed: of the order.
        segment: number of the segment, so that segments are shuffled differently.
    """

    def __init__(self, weights: Sequence[float], seed: int, segment: int) -> None:
        self.quotas = cycle_quotas(weights)
        self._seed, self._segment = seed, segment
        phases = np.array([int(f"{number:012b}"[::-1], 2) for number in range(CYCLE)])
        ends = (np.cumsum(self.quotas)[None, :] + phases[:, None]) // CYCLE
        self._block_quotas = np.diff(ends, axis=1, prepend=0)
        before = np.cumsum(self._block_quotas, axis=0)
        self._before = np.concatenate((np.zeros_like(before[:1]), before))
        self._block = functools.lru_cache(maxsize=8)(self._shuffled_block)

    def locate(self, index: int) -> tuple[int, int]:
        """Return (source number, how many of the samples before `index` came from that source)."""
        block, slot = divmod(index, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[slot])
        return source, self._whole_blocks(block, source) + int(ranks[slot])

    def counts(self, samples: int) -> list[int]:
        """Return how many of the first `samples` samples come from each source."""
        block, slots = divmod(samples, BLOCK)
        sources, _ = self._block(block)
        partial = np.bincount(sources[:slots], minlength=len(self.quotas))
        return [self._whole_blocks(block, source) + int(partial[source]) for source in range(len(self.quotas))]

    def _whole_blocks(self, blocks: int, source: int) -> int:
        cycles, rest = divmod(blocks, CYCLE)
        return cycles * int(self.quotas[source]) + int(self._before[rest, source])

    def _shuffled_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return for every slot of a block its source and how many slots before it have the same source."""
        in_order = np.repeat(np.arange(len(self.quotas)), self._block_quotas[block % CYCLE])
        key = permutation_key(self._seed, "mixture", self._segment, block)
        sources = in_order[permute_array(np.arange(BLOCK), BLOCK, key)]
        by_source = np.argsort(sources, kind="stable")
        ranks = np.empty(BLOCK, dtype=np.int64)
        ranks[by_source] = np.arange(BLOCK) - np.searchsorted(in_order, in_order, side="left")
        return sources, ranks


def cycle_quotas(weights: Sequence[float]) -> np.ndarray:
    """Return the samples of each source in a cycle of 2**24: int64, by largest remainder, at least 1 each."""
    assert 1 <= len(weights) <= BLOCK, len(weights)
    assert all(weight > 0 for weight in weights), weights
    total = sum(Fraction(weight) for weight in weights)
    ideal = [Fraction(weight) / total * BLOCK * CYCLE for weight in weights]
    quotas = [int(share) for share in ideal]
    by_remainder = sorted(range(len(weights)), key=lambda source: quotas[source] - ideal[source])
    for source in by_remainder[: BLOCK * CYCLE - sum(quotas)]:
        quotas[source] += 1
    for source, quota in enumerate(quotas):
        if quota == 0:
            quotas[source] = 1
            quotas[quotas.index(max(quotas))] -= 1
    return np.array(quotas, dtype=np.int64)
