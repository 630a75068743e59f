import json
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline.engines.local import LocalEngine
from data_pipeline.engines.work import Commit, Task, read_block, run_phase, write_blocks
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import DataError, RunError

TASKS = [Task(f"{number:06d}", f"piece {number}", number) for number in range(4)]
LOG = []


def work(folder: Path, task: Task) -> Commit:
    LOG.append(task.payload)
    if task.payload == 2 and (folder / "full").exists():
        raise OSError(28, "No space left on device")
    table = pa.table({"number": [task.payload] * 3})
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", table)]), [StageStatistics("work")], {"a": 1})


@pytest.fixture(autouse=True)
def _empty_log():
    LOG.clear()


def run(folder):
    with LocalEngine(1) as engine:
        return run_phase(engine, folder, work, TASKS)


def test_only_tasks_without_a_commit_run_again(tmp_path):
    first = run(tmp_path)
    assert LOG == [0, 1, 2, 3]
    (tmp_path / "000001.json").unlink()
    (tmp_path / "000003.arrow").unlink()
    again = run(tmp_path)
    assert LOG == [0, 1, 2, 3, 1, 3]
    assert [read_block(commit.blocks[0])["number"].to_pylist() for commit in again] == [[n] * 3 for n in range(4)]
    assert [commit.notes for commit in again] == [commit.notes for commit in first]


def test_a_commit_survives_the_move_of_its_folder(tmp_path):
    run(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert [read_block(commit.blocks[0]).num_rows for commit in run(tmp_path / "after")] == [3] * 4
    assert LOG == [0, 1, 2, 3]


def test_a_torn_commit_counts_as_none(tmp_path):
    run(tmp_path)
    whole = (tmp_path / "000002.json").read_text()
    (tmp_path / "000002.json").write_text(whole[: len(whole) // 2])
    run(tmp_path)
    assert LOG[4:] == [2]
    assert json.loads((tmp_path / "000002.json").read_text())["notes"] == {"a": 1}


def test_a_full_disk_is_an_error_that_names_the_piece_and_keeps_the_rest(tmp_path):
    (tmp_path / "full").touch()
    with pytest.raises(RunError, match=r"piece 2: .*No space left"):
        run(tmp_path)
    (tmp_path / "full").unlink()
    run(tmp_path)
    assert LOG == [0, 1, 2, 2, 3]


def test_a_flipped_bit_is_refused_by_name(tmp_path):
    path = tmp_path / "data.arrow"
    groups = [("a", pa.table({"x": [1, 2]})), ("b", pa.table({"x": list(range(500))}))]
    blocks = write_blocks(path, groups)
    assert [(block.group, read_block(block)["x"].to_pylist()) for block in blocks] == [
        ("a", [1, 2]),
        ("b", list(range(500))),
    ]
    data = bytearray(path.read_bytes())
    data[blocks[1].offset + blocks[1].length // 2] ^= 4
    path.write_bytes(data)
    assert read_block(blocks[0]).num_rows == 2
    with pytest.raises(DataError, match=r"data\.arrow is missing or damaged"):
        read_block(blocks[1])
    path.unlink()
    with pytest.raises(DataError, match=r"data\.arrow is missing or damaged"):
        read_block(blocks[0])
