"""Quotas over blocks: exact, near at every moment, and seekable."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_train.data.mixture import BLOCK, CYCLE, Mixture, cycle_quotas


def drawn(mixture, samples):
    return [mixture.locate(index) for index in range(samples)]


def test_quotas_are_the_largest_remainders():
    # 2**24 = 16777216; thirds are 5592405.33 each: one sample is left, for the first of the equal remainders.
    assert cycle_quotas([1, 1, 1]).tolist() == [5592406, 5592405, 5592405]
    assert cycle_quotas([0.5, 0.25, 0.25]).tolist() == [8388608, 4194304, 4194304]
    assert cycle_quotas([7]).tolist() == [16777216]


def test_the_smallest_source_is_not_forgotten():
    assert cycle_quotas([1.0, 1e-30]).tolist() == [BLOCK * CYCLE - 1, 1]
    mixture = Mixture([1.0, 1e-30], seed=0, segment=0)
    assert mixture.counts(BLOCK * CYCLE) == [BLOCK * CYCLE - 1, 1]


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), seed=st.integers(0, 100))
def test_every_block_has_every_share_rounded_down_or_up(weights, seed):
    mixture = Mixture(weights, seed, segment=0)
    shares = cycle_quotas(weights) / CYCLE
    previous = np.zeros(len(weights))
    for block in (1, 2, 3, 4):
        counts = np.array(mixture.counts(block * BLOCK))
        assert counts.sum() == block * BLOCK
        inside = counts - previous
        assert (inside >= np.floor(shares)).all()
        assert (inside <= np.ceil(shares)).all()
        previous = counts


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), cycles=st.integers(0, 10**6))
def test_counts_over_whole_cycles_are_the_quotas(weights, cycles):
    quotas = cycle_quotas(weights)
    assert quotas.sum() == BLOCK * CYCLE
    assert Mixture(weights, 0, 0).counts(cycles * BLOCK * CYCLE) == [cycles * int(quota) for quota in quotas]


def test_rounding_is_made_good_within_a_few_blocks():
    weights = [0.7, 0.29, 0.0099, 0.0001]
    mixture = Mixture(weights, seed=0, segment=0)
    for block in range(1, 300):
        off = np.array(mixture.counts(block * BLOCK)) - np.array(weights) * block * BLOCK
        assert np.abs(off).max() < 5  # rounding down every block would be off by hundreds


def test_a_sample_counts_those_of_its_source_before_it():
    mixture = Mixture([0.6, 0.3, 0.1], seed=5, segment=2)
    seen: Counter = Counter()
    for index, (source, rank) in enumerate(drawn(mixture, 2 * BLOCK + 100)):
        assert rank == seen[source]
        seen[source] += 1
        if index % 997 == 0:
            assert mixture.counts(index + 1) == [seen[0], seen[1], seen[2]]


def test_ranks_go_on_over_the_ends_of_blocks_and_cycles():
    mixture = Mixture([0.6, 0.3, 0.1], seed=5, segment=2)
    for start in (BLOCK - 50, BLOCK * CYCLE - 50, 10**15):
        counts = mixture.counts(start)
        for index in range(start, start + 100):
            source, rank = mixture.locate(index)
            assert rank == counts[source]
            counts[source] += 1
        assert counts == mixture.counts(start + 100)


def test_sources_are_shuffled_inside_a_block():
    sources = [source for source, _ in drawn(Mixture([1, 1], seed=0, segment=0), BLOCK)]
    assert sources.count(0) == BLOCK // 2
    changes = sum(first != second for first, second in itertools.pairwise(sources))
    assert abs(changes - BLOCK / 2) < 6 * BLOCK**0.5 / 2


@pytest.mark.parametrize("other", [{"seed": 1, "segment": 0}, {"seed": 0, "segment": 1}])
def test_seeds_and_segments_are_shuffled_differently(other):
    assert drawn(Mixture([1, 1], seed=0, segment=0), 50) != drawn(Mixture([1, 1], **other), 50)
