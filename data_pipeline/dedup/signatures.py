"""MinHash signatures, and the keys of their bands (Broder 1997; Leskovec, Rajaraman and Ullman 2014, chapter 3).

Of each shingle's hash the high 32 bits x count. Permutation p maps x to multiplier[p] * x + increment[p] modulo 2^32
with an odd multiplier, a bijection, and the signature is the smallest value of each permutation. Two texts of Jaccard
similarity J agree in a value with probability J, and in at least one of b bands of r values with 1 - (1 - J^r)^b.
"""

import numba
import numpy as np

from data_pipeline.dedup.hashing import mix, next_mix, random_numbers
from data_pipeline.dedup.shingles import shingle_hashes

_HALF = np.uint64(32)
_LARGEST = np.uint32(0xFFFFFFFF)


def permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the multipliers (odd) and the increments, uint32 [count] each."""
    numbers = random_numbers(1, count)
    return numbers.astype(np.uint32) | np.uint32(1), (numbers >> _HALF).astype(np.uint32)


@numba.njit(cache=True, nogil=True)
def sign(shingles: np.ndarray, multipliers: np.ndarray, increments: np.ndarray, signature: np.ndarray) -> None:
    """Write the signature (uint32 [permutations]) of shingle hashes (uint64 [shingles])."""
    count, values = len(shingles), len(signature)
    for p in range(values):
        signature[p] = _LARGEST
    place = 0
    while place + 4 <= count:  # four at a time: three quarters of the loads and stores less
        a, b = np.uint32(shingles[place] >> _HALF), np.uint32(shingles[place + 1] >> _HALF)
        c, d = np.uint32(shingles[place + 2] >> _HALF), np.uint32(shingles[place + 3] >> _HALF)
        for p in range(values):
            m, i = multipliers[p], increments[p]
            low = min(min(np.uint32(m * a + i), np.uint32(m * b + i)), min(np.uint32(m * c + i), np.uint32(m * d + i)))
            signature[p] = min(signature[p], low)
        place += 4
    while place < count:
        a = np.uint32(shingles[place] >> _HALF)
        for p in range(values):
            signature[p] = min(signature[p], np.uint32(multipliers[p] * a + increments[p]))
        place += 1


@numba.njit(cache=True, nogil=True)
def band_keys(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    scopes: np.ndarray,
    table: np.ndarray,
    words: int,
    characters: int,
    multipliers: np.ndarray,
    increments: np.ndarray,
    rows: int,
    scratch: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return uint64 [texts, bands], equal where two texts of a scope agree in a band, and the number of shingles.

    Args:
        starts, ends: int64 [texts], where each text is in `data` (uint8).
        scopes: uint64 [texts].
        multipliers, increments: of bands * rows permutations.
        scratch: `shingles.room` of the longest text.
    """
    bands = len(multipliers) // rows
    keys = np.zeros((len(starts), bands), np.uint64)
    shingles = np.zeros(len(starts), np.int64)
    signature = np.empty(bands * rows, np.uint32)
    for text in range(len(starts)):
        found = shingle_hashes(data, starts[text], ends[text], table, words, characters, scratch)
        shingles[text] = found
        if not found:
            continue
        sign(scratch[:found], multipliers, increments, signature)
        for band in range(bands):
            key = next_mix(scopes[text] + np.uint64(band))
            for p in range(band * rows, (band + 1) * rows):
                key = mix(key ^ np.uint64(signature[p])) + key
            keys[text, band] = key
    return keys, shingles
