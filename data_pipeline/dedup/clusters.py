"""From candidates to clusters of verified near-copies, one candidate component at a time.

Two documents are near-copies when they agree in a band and the Jaccard similarity of their shingle sets, counted
exactly, is at least `min_jaccard`. Clusters are the connected components of that graph. Pairs that are already in one
cluster need no comparison, so true copies cost one comparison per document and not one per pair.

In a band key with more than `window` + 1 documents, each is compared with the `window` before it in the order of record
ids only: the work grows with the documents of a key, and the graph is still a function of the documents alone.
"""

import numba
import numpy as np

from data_pipeline.dedup.shingles import contains, insert, slot_count
from data_pipeline.dedup.shuffle import run_starts


def cluster(
    keys: np.ndarray, places: tuple[np.ndarray, np.ndarray], shingles: np.ndarray, min_jaccard: float, window: int
) -> tuple[np.ndarray, int, int]:
    """Return the cluster of each document as the smallest row in it, and how many pairs were compared and verified.

    Args:
        keys: uint64 [documents, bands], the documents in the order of their record ids.
        places, shingles: where the distinct shingles of each document begin and end (int64 [documents] twice) in uint64
            [...]; not read if `min_jaccard` is 0, when every pair counts as verified.
    """
    documents, bands = keys.shape
    order = np.argsort(keys.ravel(), kind="stable")
    starts = run_starts(keys.ravel()[order])
    ends = np.r_[starts[1:], len(order)].astype(np.int64)
    shared = ends - starts > 1
    rows = order // bands
    return _cluster(starts[shared], ends[shared], rows, documents, *places, shingles, min_jaccard, window)


@numba.njit(cache=True, nogil=True)
def _cluster(
    starts: np.ndarray,
    ends: np.ndarray,
    rows: np.ndarray,
    documents: int,
    firsts: np.ndarray,
    lasts: np.ndarray,
    shingles: np.ndarray,
    min_jaccard: float,
    window: int,
) -> tuple[np.ndarray, int, int]:
    parents = np.arange(documents)
    slots = np.empty(2, np.uint64)
    compared, verified = 0, 0
    for group in range(len(starts)):
        for place in range(starts[group] + 1, ends[group]):
            row = rows[place]
            size = 0  # of the hash table of `row`, which is made for its first comparison
            for back in range(place - 1, max(starts[group], place - window) - 1, -1):
                other = rows[back]
                mine, theirs = _root(parents, row), _root(parents, other)
                if mine == theirs:
                    continue
                compared += 1
                if min_jaccard > 0:
                    if not size:
                        size = slot_count(lasts[row] - firsts[row])
                        if size > len(slots):
                            slots = np.empty(size, np.uint64)
                        slots[:size] = np.uint64(0)
                        for each in range(firsts[row], lasts[row]):
                            insert(slots, size, shingles[each])
                    members = lasts[row] - firsts[row]
                    if not _similar(slots, size, members, shingles, firsts[other], lasts[other], min_jaccard):
                        continue
                verified += 1
                parents[max(mine, theirs)] = min(mine, theirs)
    for row in range(documents):
        parents[row] = _root(parents, row)
    return parents, compared, verified


@numba.njit(inline="always")
def _root(parents: np.ndarray, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


@numba.njit(cache=True, nogil=True)
def _similar(
    slots: np.ndarray, size: int, members: int, shingles: np.ndarray, start: int, end: int, min_jaccard: float
) -> bool:
    """Return whether the shared part of two sets is at least `min_jaccard` of their union."""
    total = members + end - start
    needed = int(min_jaccard / (1 + min_jaccard) * total) - 1  # one less than exact, against rounding
    shared = 0
    for place in range(start, end):
        if shared + end - place < needed:
            return False
        shared += contains(slots, size, shingles[place])
    return shared / (total - shared) >= min_jaccard
