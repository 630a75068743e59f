import itertools

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from data_pipeline import radix
from data_pipeline.chain import Chain
from data_pipeline.engines.local import LocalEngine
from data_pipeline.engines.work import Commit, write_blocks

EVERYTHING = radix.Range("train/web")


def documents(count, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 50, count)
    values = generator.integers(0, 1000, lengths.sum(), np.int32)
    return pa.table(
        {
            "record_id": [generator.bytes(16) for _ in range(count)],
            "order": generator.integers(0, 2**64, count, np.uint64),
            "tokens": pa.LargeListArray.from_arrays(np.cumsum([0, *lengths]), values),
        }
    )


def rows(table):
    return [(row["order"], row["record_id"], row["tokens"]) for row in table.to_pylist()]


@pytest.mark.parametrize("whole", [EVERYTHING, radix.Range("a/b", 2**63, 2**63 + 10), radix.Range("a/b", 5, 5)])
@pytest.mark.parametrize("parts", [1, 2, 7, 128])
def test_the_parts_of_a_range_touch_and_hold_their_hashes(whole, parts):
    span = min(whole.high - whole.low + 1, 2**64)
    order = [whole.low, whole.high, *(whole.low + int(n * span) // 40 for n in range(40))]
    table = pa.table({"order": pa.array(order, pa.uint64())})
    found = [(radix.Range.parse(name), each["order"].to_pylist()) for name, each in radix.cut(whole, table, parts)]
    assert sorted(hash_ for _, hashes in found for hash_ in hashes) == sorted(order)
    for each, hashes in found:
        assert each.group == whole.group
        assert all(each.low <= hash_ <= each.high for hash_ in hashes)
    for (before, _), (after, _) in itertools.pairwise(found):
        assert before.high < after.low
    assert (found[0][0].low, found[-1][0].high) == (whole.low, whole.high)


@pytest.mark.parametrize(("fan_out", "capacity"), [(3, 500), (128, 500), (128, 10**6)])
def test_ranges_are_small_and_give_the_order_of_all_documents(tmp_path, monkeypatch, fan_out, capacity):
    monkeypatch.setattr(radix, "FAN_OUT", fan_out)
    commits, expected = [], []
    for number in range(6):
        table = documents(60, number)
        expected += rows(table)
        parts = radix.part_count(6 * documents(60).nbytes, capacity)  # the same for all mappers
        tables = list(radix.cut(EVERYTHING, table, parts))
        commits.append(Commit(write_blocks(tmp_path / f"{number}.arrow", tables), notes=radix.range_notes(tables)))
    opened = []
    read_block = radix.read_block
    monkeypatch.setattr(radix, "read_block", lambda block: opened.append(block.rows) or read_block(block))
    with LocalEngine(1) as engine:
        ranges = radix.small_ranges(Chain(tmp_path / "work", engine, Console(quiet=True), 0), commits, capacity)
    read = [radix.read_range(blocks) for blocks in ranges.values()]
    assert [row for table in read for row in rows(table)] == sorted(expected)
    assert all(table.nbytes <= 2 * capacity + 300 for table in read), "300: sliced offsets and bitmaps"
    rounds = len(list((tmp_path / "work").glob("radix-*")))
    assert rounds >= 3 if fan_out == 3 else rounds == 0 if capacity == 10**6 else rounds >= 1
    assert len(opened) > 6 or capacity == 10**6


def test_a_document_larger_than_the_capacity_is_a_range_of_its_own_in_the_end(tmp_path):
    table = documents(40)
    large = pa.table(
        {
            "record_id": [b"x" * 16],
            "order": pa.array([2**63], pa.uint64()),
            "tokens": pa.LargeListArray.from_arrays([0, 9000], np.zeros(9000, np.int32)),
        }
    )
    tables = [(str(EVERYTHING), pa.concat_tables([table, large]))]
    commits = [Commit(write_blocks(tmp_path / "a.arrow", tables), notes=radix.range_notes(tables))]
    with LocalEngine(1) as engine:
        ranges = radix.small_ranges(Chain(tmp_path / "work", engine, Console(quiet=True), 0), commits, 1000)
    sizes = [radix.read_range(blocks) for blocks in ranges.values()]
    assert sum(each.num_rows for each in sizes) == 41
    assert [each.num_rows for each in sizes if each.nbytes > 2000] == [1]


def test_names_of_ranges_are_read_back():
    assert radix.Range.parse(str(radix.Range("validation/a-b", 1, 2**64 - 1))) == radix.Range(
        "validation/a-b", 1, 2**64 - 1
    )
