import json
import os
import socket
import subprocess
import sys
import time

import pytest

from data_pipeline.engines.leases import Holder, Leases, read_lease


@pytest.fixture
def leases():
    made = []

    def make(seconds):
        made.append(Leases(seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def age(path, seconds):
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def elsewhere(path):
    path.write_text(json.dumps({"host": "another-machine", "process": 1}))


def test_one_of_two_gets_a_lease_and_the_other_after_it_was_given_back(tmp_path, leases):
    first, second = leases(60), leases(60)
    path = tmp_path / "000001.lease"
    assert first.acquire(path)
    assert not second.acquire(path)
    assert str(read_lease(path)[0]) == f"{socket.gethostname()}:{os.getpid()}"
    first.release(path)
    assert second.acquire(path)
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_of_another_machine_is_taken_over_when_it_is_too_old(tmp_path, leases):
    path = tmp_path / "a.lease"
    elsewhere(path)
    mine = leases(30)
    age(path, 20)
    assert not mine.acquire(path)
    age(path, 40)
    assert mine.acquire(path)
    assert read_lease(path)[0] == mine.holder
    assert [each.name for each in tmp_path.iterdir()] == ["a.lease"]


def test_a_torn_lease_is_kept_until_it_is_too_old(tmp_path, leases):
    path = tmp_path / "a.lease"
    path.write_text('{"host": ')
    assert not leases(30).acquire(path)
    age(path, 40)
    assert leases(30).acquire(path)


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path, leases):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "a.lease"
    path.write_text(json.dumps(vars(Holder(socket.gethostname(), ended.pid))))
    assert leases(600).acquire(path)
    assert not Holder("another-machine", ended.pid).is_dead()


def test_a_held_lease_stays_young(tmp_path, leases):
    path = tmp_path / "a.lease"
    holder, other = leases(1.0), leases(1.0)
    assert holder.acquire(path)
    for _ in range(4):
        time.sleep(0.4)
        assert not other.acquire(path)
