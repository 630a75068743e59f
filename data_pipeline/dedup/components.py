"""Connected components of a graph that is too large for one worker, in rounds of map and shuffle.

Alternating large-star and small-star (Kiveris et al. 2014, Connected Components in MapReduce and Beyond): every node
connects its larger neighbours to the smallest node that it knows, then its smaller ones, until all components are
stars around their smallest node. That takes a number of rounds that grows with the logarithm of the longest path.

A worker holds the edges of a bucket, 16 bytes each, in both directions, and sorts them: about 100 bytes for each of
edges / buckets edges, and for each document of the largest component, whose centre lies in one bucket.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.chain import Chain
from data_pipeline.dedup.hashing import mix_array
from data_pipeline.dedup.shuffle import by_bucket, hash_bucket, read_columns, run_starts
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, write_blocks

_FACTORS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64)

Edges = tuple[np.ndarray, np.ndarray]


def components(chain: Chain, name: str, edges: list[Commit], buckets: int) -> list[Commit]:
    """Return commits whose groups, one per bucket, hold `node` and `neighbour` of stars; see `star_labels`.

    Args:
        edges: commits whose groups are those of `edge_groups` (others may be among them).
    """
    before = None
    while True:
        found = {bucket: blocks for bucket, blocks in group_blocks(edges).items() if bucket.isdigit()}
        payloads = [(found[bucket], buckets) for bucket in sorted(found, key=int)]
        large = chain.phase(f"{name}.large_star", buckets, large_star_task, payloads, _label)
        grouped = sorted(group_blocks(large).items(), key=lambda item: int(item[0]))
        payloads = [(blocks, buckets) for _, blocks in grouped]
        edges = chain.phase(f"{name}.small_star", buckets, small_star_task, payloads, _label)
        now = sum(commit.notes["sum"] for commit in edges) % 2**64
        if now == before:
            return edges
        before = now


def edge_groups(nodes: np.ndarray, neighbours: np.ndarray, buckets: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield each edge (int64 [edges] twice) in both directions, grouped by the bucket of the node it starts from."""
    return _grouped(*_unique(np.r_[nodes, neighbours], np.r_[neighbours, nodes]), buckets)


def star_labels(blocks: list[Block]) -> Edges:
    """Return the nodes of a bucket of stars, ascending, and the component of each: its smallest node."""
    return _smallest(*read_columns(blocks, ["node", "neighbour"]))


def large_star_task(folder: Path, task: Task) -> Commit:
    """Connect the larger neighbours of every node to the smallest of all of them and itself."""
    blocks, buckets = task.payload
    nodes, neighbours = read_columns(blocks, ["node", "neighbour"])
    labelled, smallest = _smallest(nodes, neighbours)
    larger = neighbours > nodes
    centers = smallest[np.searchsorted(labelled, nodes[larger])]
    edges = _unique(neighbours[larger], centers)
    return Commit(write_blocks(folder / f"{task.name}.arrow", _grouped(*edges, buckets), compression=None))


def small_star_task(folder: Path, task: Task) -> Commit:
    """Connect every node and its smaller neighbours, which are all it has here, to the smallest of them."""
    blocks, buckets = task.payload
    nodes, neighbours = read_columns(blocks, ["node", "neighbour"])
    labelled, smallest = _smallest(nodes, neighbours)
    centers = smallest[np.searchsorted(labelled, nodes)]
    inner = neighbours != centers
    nodes, centers = _unique(np.r_[neighbours[inner], labelled], np.r_[centers[inner], smallest])
    hashes = mix_array(nodes.astype(np.uint64) * _FACTORS[0] ^ centers.astype(np.uint64) * _FACTORS[1])
    written = write_blocks(folder / f"{task.name}.arrow", edge_groups(nodes, centers, buckets), compression=None)
    return Commit(written, notes={"sum": int(hashes.sum(dtype=np.uint64))})


def _smallest(nodes: np.ndarray, neighbours: np.ndarray) -> Edges:
    """Return the distinct nodes, ascending, and the smallest of each and its neighbours."""
    order = np.argsort(nodes)
    nodes, neighbours = nodes[order], neighbours[order]
    starts = run_starts(nodes)
    if not len(starts):
        return nodes, neighbours
    return nodes[starts], np.minimum(nodes[starts], np.minimum.reduceat(neighbours, starts))


def _unique(nodes: np.ndarray, neighbours: np.ndarray) -> Edges:
    order = np.lexsort((neighbours, nodes))
    nodes, neighbours = nodes[order], neighbours[order]
    new = np.ones(len(nodes), bool)
    new[1:] = (nodes[1:] != nodes[:-1]) | (neighbours[1:] != neighbours[:-1])
    return nodes[new], neighbours[new]


def _grouped(nodes: np.ndarray, neighbours: np.ndarray, buckets: int) -> Iterator[tuple[str, pa.Table]]:
    table = pa.table({"node": nodes, "neighbour": neighbours})
    return by_bucket(table, hash_bucket(mix_array(nodes.astype(np.uint64)), buckets))


def _label(payload: tuple) -> str:
    return payload[0][0].path
