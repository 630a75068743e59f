"""Real processes that hang, stop, die or fail; what the others say, and how soon."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.distributed
from watchdog_job import run_rank

from llama_foundation.errors import RunError
from llama_train.survive import watchdog
from llama_train.survive.beats import Beat, culprit
from llama_train.survive.neighbours import Neighbours, _began
from llama_train.survive.watchdog import LEAVE_SECONDS, Watchdog, explain_peer_failure, is_peer_failure

DEADLINE = 3.0
WITHIN = DEADLINE + 3.0 + 2 * LEAVE_SECONDS
"""Seconds in which every survivor must have ended, looking around and a busy machine included."""


@dataclass
class Job:
    ranks: list[multiprocessing.Process]
    directory: Path

    def wait_until_stepping(self) -> None:
        end = time.monotonic() + 60
        while not all((self.directory / f"ready-{rank}").exists() for rank in range(len(self.ranks))):
            assert time.monotonic() < end, "the job did not start"
            time.sleep(0.05)

    def end_of(self, ranks: list[int], seconds: float) -> list[tuple[int, str]]:
        """Exit status and standard error of each of `ranks`, all of which must end within `seconds`."""
        end = time.monotonic() + seconds
        for rank in ranks:
            self.ranks[rank].join(max(0.1, end - time.monotonic()))
            assert self.ranks[rank].exitcode is not None, f"rank {rank} is still there after {seconds} s"
        return [(self.ranks[rank].exitcode, (self.directory / f"stderr-{rank}").read_text()) for rank in ranks]


@pytest.fixture
def start(tmp_path):
    # one server has loaded torch; ranks are forked from it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "watchdog_job"])
    jobs = []

    def start(world: int, fault: str) -> Job:
        ranks = [
            context.Process(target=run_rank, args=(rank, world, tmp_path, fault, DEADLINE)) for rank in range(world)
        ]
        jobs.append(Job(ranks, tmp_path))
        for rank in ranks:
            rank.start()
        return jobs[-1]

    yield start
    for job in jobs:
        for rank in job.ranks:
            rank.kill()
            rank.join()


@pytest.mark.timeout(120)
def test_a_rank_that_is_stopped_ends_the_others_which_name_it(start):
    job = start(3, "later")
    job.wait_until_stepping()
    os.kill(job.ranks[1].pid, signal.SIGSTOP)
    for status, stderr in job.end_of([0, 2], WITHIN):
        assert status == RunError.exit_code
        assert "rank 1 (host1) is dead or stopped: last seen in step" in stderr
        assert "rank 0 (host0) is dead" not in stderr
        assert "rank 2 (host2) is dead" not in stderr
    stacks = (job.directory / "logs" / "stacks-rank-0.txt").read_text()
    assert "all_reduce" in stacks


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("hang in data", "rank 1 (host1) is behind: step 5, phase data, for"),
        ("hang in compute", "rank 1 (host1) keeps the others waiting: step 5, phase compute, for"),
    ],
)
def test_a_rank_that_hangs_ends_all_and_is_named(start, fault, says):
    job = start(2, fault)
    job.wait_until_stepping()
    for status, stderr in job.end_of([0, 1], WITHIN):
        assert status == RunError.exit_code
        assert says in stderr
        assert "in sleep_for_ever" in stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_rank_ends_the_others_which_name_it(start, victim):
    job = start(3, "later")
    job.wait_until_stepping()
    job.ranks[victim].kill()
    survivors = [rank for rank in range(3) if rank != victim]
    for status, stderr in job.end_of(survivors, WITHIN):
        assert status == RunError.exit_code
        # rank 0 keeps the store of this job: without it nobody can tell more than that it is gone
        assert ("rank 1 (host1) is dead: last seen in step" if victim else "rank 0, which keeps it, ended") in stderr


@pytest.mark.timeout(120)
def test_a_rank_that_fails_says_why_to_the_others(start):
    job = start(2, "error")
    status, stderr = job.end_of([1], 60)[0]
    assert status == 1
    assert "failed: shard-00003.bin is broken" in stderr
    status, stderr = job.end_of([0], WITHIN)[0]
    assert status == RunError.exit_code
    assert "rank 1 (host1) failed in step 5, phase data: ValueError: shard-00003.bin is broken" in stderr


@pytest.mark.timeout(120)
def test_a_killed_rank_is_seen_to_end_where_no_connection_breaks(start):
    job = start(3, "later, each for itself")  # as under NCCL, whose collectives wait on
    job.wait_until_stepping()
    job.ranks[1].kill()
    for status, stderr in job.end_of([0, 2], DEADLINE):  # all of them make progress: no deadline ends them
        assert status == RunError.exit_code
        assert "rank 1 (host1) is dead: last seen in step" in stderr


@pytest.mark.timeout(60)
def test_a_healthy_job_is_left_alone(start):
    job = start(2, "none")
    for status, stderr in job.end_of([0, 1], 60):
        assert (status, stderr) == (0, "")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("default", "deadlines", "says"),
    [
        (1.0, {}, "(allowed: 1 s) in step 1, phase compute, at <string>:7 in <module>"),
        (1.0, {"start": 30.0}, "(allowed: 1 s) in step 2, phase data, at <string>:9 in <module>"),
        (30.0, {"data": 1.0}, "(allowed: 1 s) in step 2, phase data, at <string>:9 in <module>"),
    ],
)
def test_one_process_that_stands_still_ends_at_the_deadline_of_its_phase(tmp_path, default, deadlines, says):
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from llama_train.survive.watchdog import Watchdog
        with Watchdog(0, 1, None, {default}, "here", Path({str(tmp_path)!r}), {deadlines}) as watchdog:
            watchdog.beat(1, "compute")
            time.sleep(1.6)
            watchdog.beat(2, "data")
            time.sleep(1.6)
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
    assert ended.returncode == RunError.exit_code
    assert says in ended.stderr
    assert "in <module>" in (tmp_path / "logs" / "stacks-rank-0.txt").read_text()


@pytest.mark.parametrize(
    ("dump", "says"),
    [
        (None, "this torch is built without NCCL"),
        (lambda **asked: 1 / 0, "ZeroDivisionError"),
        (lambda **asked: time.sleep(2), "NCCL does not answer"),
        (lambda **asked: json.dumps(asked).encode(), None),
    ],
)
def test_a_flight_record_is_written_or_said_to_be_missing(tmp_path, monkeypatch, capfd, dump, says):
    from torch._C import _distributed_c10d

    monkeypatch.setattr(_distributed_c10d, "_dump_nccl_trace_json", dump, raising=False)
    monkeypatch.setattr(watchdog, "_RECORD_SECONDS", 0.2)
    Watchdog(3, 1, None, 60.0, "here", tmp_path, nccl=True)._dump_collectives()
    path, told = tmp_path / "logs" / "nccl-rank-3.json", capfd.readouterr().err
    if says is None:
        assert (json.loads(path.read_text()), told) == ({"includeCollectives": True, "onlyActive": False}, "")
    else:
        assert told == f"warning: {path} is not written: {told.partition('written: ')[2]}" and says in told


def _beat(rank: int, step: int, part: int, waiting: bool = True) -> Beat:
    return Beat(rank, f"node{rank}", step, "compute", part, time.time() - 63, "model.py:7 in forward", waiting, 1)


def test_the_one_furthest_behind_is_named_with_its_step_phase_and_age():
    beats = {0: _beat(0, 8, 0), 1: _beat(1, 7, 2), 2: _beat(2, 7, 1)}
    assert culprit(beats, [], 3) == (
        "rank 2 (node2) is behind: step 7, phase compute, for 63 s, at model.py:7 in forward"
    )


def test_nobody_is_blamed_where_nobody_differs():
    text = culprit({rank: _beat(rank, 7, 1) for rank in range(3)}, [], 3)
    assert text.startswith("no rank of 3 is behind the others: step 7, phase compute, for 63 s")


def test_silent_ranks_are_named_also_those_that_never_spoke():
    text = culprit({0: _beat(0, 7, 1), 2: _beat(2, 6, 1)}, [1, 2], 3)
    assert "rank 1 never gave a sign of life" in text
    assert "rank 2 (node2) is dead or stopped: last seen in step 6" in text
    text = culprit({0: _beat(0, 7, 1), 2: _beat(2, 6, 1)}, [1], 3, [2])
    assert text.startswith("rank 2 (node2) is dead: last seen in step 6")


def test_a_process_is_known_by_its_beginning_and_not_missed_after_it_left():
    store = torch.distributed.HashStore()
    mine = Neighbours(store, "attempt", 0)
    with subprocess.Popen(["sleep", "60"]) as other:
        place = store.add(mine._key("count"), 1)
        store.set(mine._key(str(place)), json.dumps([1, other.pid, _began(other.pid)]))
        assert mine.ended() == []
        other.kill()
        while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert mine.ended() == [1]  # nobody has read its status yet
    assert mine.ended() == [1]  # its id is free again
    place = store.add(mine._key("count"), 1)
    store.set(mine._key(str(place)), json.dumps([2, os.getpid(), "1"]))  # its id was given to another one
    assert mine.ended() == [1, 2]
    Neighbours(store, "attempt", 1).leave()
    assert mine.ended() == [2]


def test_other_errors_are_not_taken_for_a_lost_peer():
    assert is_peer_failure(RuntimeError("[gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:35413"))
    assert not is_peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_peer_failure(OSError("Connection reset by peer"))


def test_a_lost_peer_is_known_inside_of_what_a_pipelines_stage_raises(tmp_path):
    lost = RuntimeError("[gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:35413")
    wrapped = RuntimeError("\n            [Stage 1] failed to run forward")
    wrapped.__cause__ = lost
    assert is_peer_failure(wrapped)
    mine = Watchdog(0, 1, None, 60.0, "here", tmp_path)
    mine.failure = lambda: "rank 2 (there) is dead or stopped"
    assert str(explain_peer_failure(wrapped, mine)).endswith("by: " + str(lost))
    mine._board = mine  # as if there were others
    heard = []
    said = pytest.raises(RunError, match=r"^rank 2 \(there\) is dead or stopped; rank 0")
    with said as told, contextlib.ExitStack() as observers:
        observers.push(lambda kind, error, trace: heard.append(error))
        observers.enter_context(mine.explaining())
        raise wrapped
    assert heard == [told.value]  # who watches the run is told who is gone
    assert mine.__exit__(RunError, told.value, None) is None  # once is enough


def test_a_user_error_leaves_the_watchdog_as_it_is(tmp_path):
    with pytest.raises(RunError, match="disk full"):
        with Watchdog(0, 1, None, 60.0, "here", tmp_path):
            raise RunError("disk full")
