import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline.engines.array import ArrayEngine
from data_pipeline.engines.work import Commit, Task, read_block, run_phase, write_blocks
from llama_foundation.errors import DataError, RunError

TASKS = [Task(f"{number:06d}", f"piece {number}", number) for number in range(12)]


def work(folder: Path, task: Task) -> Commit:
    """Write down who did the task; wait, fail or crash where the folder says so."""
    with open(folder.parent / "log", "a") as log:
        log.write(f"{task.payload} {os.getpid()}\n")
    if (folder.parent / f"wait-{task.payload}").exists():
        time.sleep(600)
    if (folder.parent / f"bad-{task.payload}").exists():
        raise DataError(f"row {task.payload} is bad")
    if (folder.parent / f"bug-{task.payload}").exists():
        raise ZeroDivisionError("oh")
    time.sleep(0.02)
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", pa.table({"number": [task.payload]}))]))


def run(folder, lease_seconds=60.0, workers=1, tasks=TASKS):
    with ArrayEngine(workers, lease_seconds) as engine:
        return run_phase(engine, folder, work, tasks)


def log(folder):
    return [int(line.split()[0]) for line in (folder.parent / "log").read_text().splitlines()]


def values(commits):
    return [read_block(commit.blocks[0])["number"][0].as_py() for commit in commits]


def in_threads(function, number):
    """Return what `number` concurrent calls returned or raised."""
    results = [None] * number

    def call(place):
        try:
            results[place] = function()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=call, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_workers_share_the_tasks_and_all_get_all_commits(tmp_path):
    folder = tmp_path / "phase"
    for commits in in_threads(lambda: run(folder), 3):
        assert values(commits) == list(range(12))
    assert sorted(log(folder)) == list(range(12)), "nothing was done twice"
    pids = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(pids) > 1
    assert not list(folder.glob("*.lease")) + list(folder.glob(".*.partial"))


def test_one_worker_is_enough_and_a_later_one_finds_everything_done(tmp_path):
    folder = tmp_path / "phase"
    assert values(run(folder, workers=2)) == list(range(12))
    assert values(run(folder)) == list(range(12))
    assert len(log(folder)) == 12


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_array
test_array.run(Path(sys.argv[1]))
"""


def test_what_a_killed_worker_held_is_done_by_another(tmp_path):
    folder = tmp_path / "phase"
    for number in range(12):
        (tmp_path / f"wait-{number}").touch()  # so the victim is stuck in its first task
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    victim = subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(Path(__file__).parent)], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for number in range(12):
        (tmp_path / f"wait-{number}").unlink()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert len(list(folder.glob("*.lease"))) == 1
    assert values(run(folder, lease_seconds=600)) == list(range(12))
    assert len(log(folder)) == 13


def test_a_failure_stops_the_other_workers_with_the_same_error_and_is_tried_again_later(tmp_path):
    folder = tmp_path / "phase"
    (tmp_path / "bad-5").touch()
    started = time.monotonic()
    for error in in_threads(lambda: run(folder), 2):
        assert isinstance(error, DataError)
        assert str(error) == "row 5 is bad"
    assert time.monotonic() - started < 50
    with pytest.raises(DataError, match="row 5 is bad"):
        run(folder)
    (tmp_path / "bad-5").unlink()
    assert values(run(folder)) == list(range(12))
    assert not list(folder.glob("*.failed"))
    assert all(log(folder).count(number) == 1 for number in range(12) if number != 5)


def waiting_for_another_machine(folder):
    """Return a thread that waits for a task which another machine holds, and where its error will be."""
    folder.mkdir()
    (folder / "000000.lease").write_text('{"host": "another-machine", "process": 1}')
    results = []
    waiting = threading.Thread(target=lambda: results.append(in_threads(lambda: run(folder, tasks=TASKS[:1]), 1)[0]))
    waiting.start()
    time.sleep(1)
    return waiting, results


def test_a_worker_that_only_waits_learns_of_a_failure(tmp_path):
    folder = tmp_path / "phase"
    waiting, results = waiting_for_another_machine(folder)
    note = {"attempt": "theirs", "kind": "DataError", "message": "row 0 is bad", "label": "piece 0"}
    (folder / "000000.failed").write_text(json.dumps(note))  # and its lease is still held
    waiting.join(10)
    told = list(results)
    (folder / "000000.lease").unlink()
    waiting.join(60)
    (error,) = told
    assert isinstance(error, DataError) and str(error) == "row 0 is bad"


def test_a_task_that_another_machine_gave_back_is_done_and_its_error_named(tmp_path):
    folder = tmp_path / "phase"
    (tmp_path / "bug-0").touch()
    waiting, results = waiting_for_another_machine(folder)
    (folder / "000000.lease").unlink()
    waiting.join(60)
    (error,) = results
    assert isinstance(error, RunError)
    assert "piece 0 failed: ZeroDivisionError: oh" in str(error)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made: Not a directory"):
        run(tmp_path / "file" / "phase")
