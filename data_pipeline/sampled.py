"""A run over a part of the input that notes what every phase takes, for a forecast.

Most of a phase's disk grows with its documents. Two things do not, and are as large as those only where partitions are
small: what a task commits about itself, which is counted apart; and the ranges of the order of documents (radix.py), of
which a task writes more the larger the whole is. So a sample is cut into the ranges of the whole.
"""

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

from data_pipeline import radix
from data_pipeline.chain import NOTE, Chain
from data_pipeline.engines.work import Block, Commit
from data_pipeline.read import plan
from data_pipeline.run import Pipeline


@dataclass
class Use:
    """What a phase took."""

    cpu_seconds: float
    peak_bytes: int  # of memory, of the one worker
    disk_bytes: float  # of documents and keys
    commit_bytes: float = 0  # of what tasks say of themselves: counts, examples, checksums


class MeteredChain(Chain):
    """Notes what every phase takes; with one worker all of it happens in this process."""

    def __init__(self, chain: Chain) -> None:
        self.__dict__ = chain.__dict__
        self.plain = chain
        self.uses: dict[str, Use] = {}

    def phase(self, name: str, *arguments: Any, **named: Any) -> list[Commit]:
        _forget_peak()
        started = time.process_time()
        commits = super().phase(name, *arguments, **named)
        seconds, whole = time.process_time() - started, size_of(self.folder(name))
        told = sum(path.stat().st_size for path in self.folder(name).glob("*.json"))
        before = self.uses.get(name, Use(0, 0, 0))  # a phase of several rounds
        self.uses[name] = Use(
            before.cpu_seconds + seconds,
            max(before.peak_bytes, _peak()),
            before.disk_bytes + whole - told,
            before.commit_bytes + told,
        )
        return commits


class SampledPipeline(Pipeline):
    """A run over some of the pieces, on a `MeteredChain`."""

    chosen: frozenset[plan.Piece] = frozenset()
    factor: float = 1.0  # how many times the bytes of `chosen` the whole input has

    def choose(self, pieces: list[plan.Piece]) -> list[plan.Piece]:
        return [piece for piece in pieces if piece in self.chosen]

    def part_count(self, size: int) -> int:
        return super().part_count(round(size * self.factor))

    def small_ranges(self, encoded: list[Commit]) -> dict[radix.Range, list[Block]]:
        """Cut again what the whole would have to, to see what that takes; then make ranges as large as the whole's."""
        capacity = self.config.partition_bytes
        pieces, times = [], {}
        for group, (parts, blocks, size) in _groups(encoded).items():
            share = self.factor / parts  # of the group's documents here, in one range of the whole
            written = times_cut(size * share, sum(block.rows for block in blocks) * share, capacity)
            if written > 0.001:
                # a task cuts about `capacity` bytes of one range; which range it is makes no difference
                cut_into = max(2, radix.part_count(round(size * share), capacity))
                own = [(piece, str(radix.Range(group)), cut_into) for piece in radix.pieces(blocks, size, capacity)]
                pieces += own
                times[group] = (written, len(own))
        if pieces:
            self.chain.phase("radix", None, radix.cut_task, pieces, lambda payload: payload[1])
            mean = sum(written * tasks for written, tasks in times.values()) / len(pieces)
            use = self.chain.uses["radix"]
            use.cpu_seconds, use.disk_bytes = use.cpu_seconds * mean, use.disk_bytes * mean
            use.commit_bytes *= mean
        ranges = radix.small_ranges(self.chain.plain, encoded, capacity)
        size = sum(size for _, _, size in _groups(encoded).values())
        return _joined(ranges, capacity * sum(block.length for block in _blocks(ranges)) / max(size, 1))


def times_cut(size: float, rows: float, capacity: int) -> float:
    """Return how often, on average, the bytes of a range are cut again if ranges have `size` bytes, `rows` documents.

    How many documents fall into a range follows Poisson's law, here taken for normal; that they differ in size is
    left out. Large ranges hold more of the bytes: the mean of a normal variable beyond a limit (Johnson, Kotz and
    Balakrishnan 1994, section 13.10.1).
    """
    rounds = 0
    while size > 8 * capacity:  # all ranges are too large
        cut_into = radix.part_count(round(size), capacity)
        size, rows, rounds = size / cut_into, rows / cut_into, rounds + 1
    spread = NormalDist(size, size / sqrt(max(rows, 1)))
    return rounds + 1 - spread.cdf(2 * capacity) + spread.variance * spread.pdf(2 * capacity) / size


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != NOTE)


def _groups(encoded: list[Commit]) -> dict[str, tuple[int, list[Block], int]]:
    """Return group -> (ranges it is cut into, their blocks, their bytes in memory)."""
    ranges, sizes = radix.gather(encoded)
    groups: dict[str, tuple[int, list[Block], int]] = {}
    for each, blocks in ranges.items():
        _, before, size = groups.get(each.group, (0, [], 0))
        parts = round(2**64 / (each.high - each.low + 1))
        groups[each.group] = (parts, before + blocks, size + sizes[each])
    return groups


def _blocks(ranges: dict[radix.Range, list[Block]]) -> Iterable[Block]:
    return (block for blocks in ranges.values() for block in blocks)


def _joined(ranges: dict[radix.Range, list[Block]], most: float) -> dict[radix.Range, list[Block]]:
    """Join neighbours up to `most` stored bytes: sorting a range takes memory, and the whole has no smaller ones."""
    joined: dict[radix.Range, list[Block]] = {}
    last = None
    for each, blocks in ranges.items():
        held = joined.pop(last) if last is not None and last.group == each.group else []
        if held and sum(block.length for block in held + blocks) > most:
            joined[last], held = held, []
        last = radix.Range(each.group, last.low if held else each.low, each.high)
        joined[last] = held + blocks
    return joined


def _forget_peak() -> None:
    """Begin a new peak of resident memory (Linux); elsewhere the peak of the whole process is what there is."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
