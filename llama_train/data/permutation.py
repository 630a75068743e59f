"""A keyed permutation of range(size), computed index by index: shuffling without a list.

Construction: a Feistel network over the smallest power of two that holds `size` (Luby and Rackoff 1988), its halves
one bit apart where the number of bits is odd, and cycle walking: an image outside the range is put in again until it
is inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). The domain is less than twice the range,
so that takes fewer than two rounds on average. The round function is the 64-bit finalizer of splitmix64 (Steele, Lea
and Flood 2014) over the half plus a round key; the eight round keys are the BLAKE2b hash of the seed and the labels.
Eight rounds shuffle; they are not meant to keep secrets.
"""

import hashlib
import json

import numpy as np

Key = tuple[int, ...]

LARGEST = 2**63
_ROUNDS = 8
_MASK = 2**64 - 1
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def permutation_key(seed: int, *labels: str | int) -> Key:
    """Return eight 64-bit round keys; different (seed, labels) give unrelated ones."""
    digest = hashlib.blake2b(json.dumps([seed, *labels]).encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))


def permute(index: int, size: int, key: Key) -> int:
    """Return where `index` goes in the permutation of range(`size`) that `key` selects; 1 <= size <= 2**63."""
    assert 0 <= index < size <= LARGEST, (index, size)
    low_bits, high_bits = _halves(size)
    while True:
        index = _feistel(index, low_bits, high_bits, key)
        if index < size:
            return index


def permute_array(indices: np.ndarray, size: int, key: Key) -> np.ndarray:
    """Return `permute` of every element: int64, the shape of `indices`."""
    assert 1 <= size <= LARGEST, size
    images = np.asarray(indices, dtype=np.uint64).reshape(-1)
    assert not len(images) or int(images.max()) < size, (images.max(), size)
    low_bits, high_bits = _halves(size)
    images = _feistel_array(images, low_bits, high_bits, key)
    outside = np.flatnonzero(images >= np.uint64(size))
    while len(outside):
        images[outside] = _feistel_array(images[outside], low_bits, high_bits, key)
        outside = outside[images[outside] >= np.uint64(size)]
    return images.astype(np.int64).reshape(np.shape(indices))


def _halves(size: int) -> tuple[int, int]:
    bits = (size - 1).bit_length()
    return (bits + 1) // 2, bits // 2


def _feistel(index: int, low_bits: int, high_bits: int, key: Key) -> int:
    low_mask, high_mask = (1 << low_bits) - 1, (1 << high_bits) - 1
    low, high = index & low_mask, index >> low_bits
    for number in range(0, _ROUNDS, 2):
        high ^= _mix(low + key[number]) & high_mask
        low ^= _mix(high + key[number + 1]) & low_mask
    return high << low_bits | low


def _mix(value: int) -> int:
    value &= _MASK
    value = (value ^ value >> 30) * _MULTIPLY_1 & _MASK
    value = (value ^ value >> 27) * _MULTIPLY_2 & _MASK
    return value ^ value >> 31


def _feistel_array(indices: np.ndarray, low_bits: int, high_bits: int, key: Key) -> np.ndarray:
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    low, high = indices & low_mask, indices >> np.uint64(low_bits)
    for number in range(0, _ROUNDS, 2):
        high = high ^ (_mix_array(low + np.uint64(key[number])) & high_mask)
        low = low ^ (_mix_array(high + np.uint64(key[number + 1])) & low_mask)
    return high << np.uint64(low_bits) | low


def _mix_array(values: np.ndarray) -> np.ndarray:
    values = (values ^ values >> np.uint64(30)) * np.uint64(_MULTIPLY_1)
    values = (values ^ values >> np.uint64(27)) * np.uint64(_MULTIPLY_2)
    return values ^ values >> np.uint64(31)
