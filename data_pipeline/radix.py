"""Documents into the order of their hashes, on disk: an external radix partition.

Hashes are uniform, so a set of documents is cut into ranges of hashes, each small enough to be sorted in memory. A
mapper cuts into at most `FAN_OUT` ranges; ranges that are still too large are cut again, in a phase of their own. A
worker has one file open at a time, and holds about `capacity` bytes of runs in the cutting phases and up to twice as
many when it sorts.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.chain import Chain
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, read_block, write_blocks

FAN_OUT = 128
"""Most blocks that a task writes for one range, and so what a commit names."""

VERSION = 1


@dataclass(frozen=True, order=True)
class Range:
    """The documents of a group whose column `order` is from `low` to `high`, both included."""

    group: str
    low: int = 0
    high: int = 2**64 - 1

    def __str__(self) -> str:
        return f"{self.group}/{self.low:016x}-{self.high:016x}"

    @classmethod
    def parse(cls, text: str) -> "Range":
        group, _, bounds = text.rpartition("/")
        low, high = bounds.split("-")
        return cls(group, int(low, 16), int(high, 16))


def part_count(size: int, capacity: int) -> int:
    """Return into how many ranges `size` bytes are cut at once."""
    return max(1, min(FAN_OUT, -(-size // capacity)))


def cut(whole: Range, table: pa.Table, parts: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield (range, its rows) for the `parts` equal ranges of `whole` that have any; `table` has a column `order`."""
    span = whole.high - whole.low + 1
    lows = [whole.low + span * part // parts for part in range(parts)]
    highs = [*(low - 1 for low in lows[1:]), whole.high]
    place = np.searchsorted(np.array(lows, np.uint64), table["order"].to_numpy(), side="right") - 1
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(parts + 1))
    for part in np.unique(place).tolist():
        rows = order[bounds[part] : bounds[part + 1]]
        yield str(Range(whole.group, lows[part], highs[part])), table.take(pa.array(rows))


def small_ranges(chain: Chain, commits: list[Commit], capacity: int) -> dict[Range, list[Block]]:
    """Return the ranges in their order, with their blocks; larger ones than `2 * capacity` bytes are cut until none is.

    Args:
        commits: their blocks are grouped by range, and their notes give the bytes of each: `range_notes`.
    """
    ranges, sizes = gather(commits)
    while large := [each for each in sorted(ranges) if _too_large(each, ranges[each], sizes[each], capacity)]:
        payloads = [
            (piece, str(each), part_count(sizes[each], capacity))
            for each in large
            for piece in pieces(ranges.pop(each), sizes[each], capacity)
        ]
        inputs = [VERSION, capacity, FAN_OUT]
        cuts = chain.phase("radix", inputs, cut_task, payloads, lambda payload: payload[1])
        found, found_sizes = gather(cuts)
        ranges |= found
        sizes |= found_sizes
    ordered = sorted(ranges)
    for before, after in itertools.pairwise(ordered):
        assert before.group != after.group or before.high < after.low, (before, after)
    return {each: ranges[each] for each in ordered}


def range_notes(tables: list[tuple[str, pa.Table]]) -> dict[str, dict[str, int]]:
    """Return the notes of a commit with these tables."""
    return {"bytes": {name: table.nbytes for name, table in tables}}


def read_range(blocks: list[Block]) -> pa.Table:
    """Return the rows of a range, sorted by (order, record_id)."""
    table = pa.concat_tables([read_block(block) for block in blocks], promote_options="default")
    return table.sort_by([("order", "ascending"), ("record_id", "ascending")]).combine_chunks()


def gather(commits: list[Commit]) -> tuple[dict[Range, list[Block]], dict[Range, int]]:
    """Return the blocks of every range, and its bytes in memory."""
    ranges = {Range.parse(name): blocks for name, blocks in group_blocks(commits).items()}
    sizes = dict.fromkeys(ranges, 0)
    for commit in commits:
        for name, size in commit.notes["bytes"].items():
            sizes[Range.parse(name)] += size
    return ranges, sizes


def pieces(blocks: list[Block], size: int, capacity: int) -> Iterator[tuple[Block, ...]]:
    """Yield the blocks in groups of about `capacity` bytes in memory."""
    stored = sum(block.length for block in blocks)
    most = max(1, stored * capacity // size)
    piece: list[Block] = []
    held = 0
    for block in blocks:
        if piece and held + block.length > most:
            yield tuple(piece)
            piece, held = [], 0
        piece.append(block)
        held += block.length
    yield tuple(piece)


def cut_task(folder: Path, task: Task) -> Commit:
    """Cut some blocks of one range; the payload is (blocks, the range as text, parts)."""
    blocks, name, parts = task.payload
    table = pa.concat_tables([read_block(block) for block in blocks], promote_options="default").combine_chunks()
    tables = list(cut(Range.parse(name), table, parts))
    return Commit(write_blocks(folder / f"{task.name}.arrow", tables), notes=range_notes(tables))


def _too_large(each: Range, blocks: list[Block], size: int, capacity: int) -> bool:
    return size > 2 * capacity and each.low < each.high and sum(block.rows for block in blocks) > 1
