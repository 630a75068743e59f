"""The keyed permutation: bijective, keyed, uniform, and the same one by one as in bulk."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_train.data.permutation import LARGEST, permutation_key, permute, permute_array

SIZES = [*range(1, 70), 127, 128, 129, 1000, 4096, 65535, 65537, 100003]


@pytest.mark.parametrize("size", SIZES)
def test_every_number_comes_out_once(size):
    images = permute_array(np.arange(size), size, permutation_key(1, "test", size))
    assert np.array_equal(np.sort(images), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, LARGEST), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_one_by_one_and_in_bulk_agree_up_to_the_largest_size(size, seed, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5, unique=True))
    key = permutation_key(seed, "source", 3)
    images = [permute(index, size, key) for index in indices]
    assert images == permute_array(np.array(indices), size, key).tolist()
    assert all(0 <= image < size for image in images)
    assert len(set(images)) == len(images)


def test_seeds_and_labels_give_different_permutations():
    labels = [
        (0, "web", 0),
        (1, "web", 0),
        (0, "web", 1),
        (0, "books", 0),
        (0, "web0"),
        (0, "we", "b", 0),
        (0, "web", "0"),
    ]
    images = [tuple(permute_array(np.arange(100), 100, permutation_key(*label))) for label in labels]
    assert len(set(images)) == len(labels)


def test_a_seed_means_the_same_for_ever():
    """Worked out by a second program from the docstring; another construction would change the data of running runs."""
    key = permutation_key(0, "web", 0)
    assert permute_array(np.arange(10), 10, key).tolist() == [8, 6, 7, 3, 4, 5, 9, 1, 2, 0]
    assert permute(123456789012345, 10**15, key) == 15806171278960


def test_keys_are_the_hash_that_the_docstring_names():
    import hashlib

    digest = hashlib.blake2b(b'[5, "web", 2]', digest_size=64).digest()
    assert permutation_key(5, "web", 2) == tuple(np.frombuffer(digest, "<u8").tolist())


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 64])
def test_every_place_is_equally_likely(size):
    """Chi-square over (index, image) pairs; the bound is 6 standard deviations above the mean."""
    keys = 3000
    observed = np.zeros((size, size))
    for seed in range(keys):
        observed[np.arange(size), permute_array(np.arange(size), size, permutation_key(seed))] += 1
    expected = keys / size
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


def test_all_orders_of_four_are_equally_likely():
    keys = 12000
    observed = Counter(tuple(permute(index, 4, permutation_key(seed)) for index in range(4)) for seed in range(keys))
    assert set(observed) == set(itertools.permutations(range(4)))
    chi_square = sum((count - keys / 24) ** 2 / (keys / 24) for count in observed.values())
    assert chi_square < 23 + 6 * math.sqrt(2 * 23)


def test_neighbours_are_torn_apart():
    """In a random permutation of n, |image of i - image of i + 1| is n / 3 on average."""
    images = permute_array(np.arange(100000), 100000, permutation_key(3, "web", 0))
    assert abs(np.abs(np.diff(images)).mean() - 100000 / 3) < 500
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
