import os
import signal
import time

import pytest

from data_pipeline.engines.local import LocalEngine
from llama_foundation.errors import DataError, RunError


def slow_first(item):
    time.sleep(0.2 if item == 0 else 0)
    return item * item


def process(_):
    time.sleep(0.05)
    return os.getpid()


def die(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse(item):
    raise DataError(f"row {item} is bad")


def crash(item):
    return 1 // (item - 2)


def test_results_come_in_the_order_of_the_items_and_workers_share_them():
    ticks = []
    with LocalEngine(2) as engine:
        assert engine.map(slow_first, range(6), done=lambda: ticks.append(1)) == [0, 1, 4, 9, 16, 25]
        assert len(set(engine.map(process, range(8)))) == 2
    assert len(ticks) == 6


def test_one_worker_runs_in_this_process():
    with LocalEngine(1) as engine:
        assert set(engine.map(process, range(2))) == {os.getpid()}


def test_a_worker_that_dies_is_reported_with_its_item():
    with LocalEngine(2) as engine, pytest.raises(RunError, match=r"the worker that had item 3 was killed \(signal 9"):
        engine.map(die, range(6), name=lambda item: f"item {item}")


def test_a_user_error_comes_back_as_it_was_raised():
    with LocalEngine(2) as engine, pytest.raises(DataError, match=r"^row \d is bad$"):
        engine.map(refuse, range(3))


def test_another_error_names_the_item():
    with LocalEngine(2) as engine, pytest.raises(RunError, match=r"(?s)item 2 failed: ZeroDivisionError.*crash"):
        engine.map(crash, range(4), name=lambda item: f"item {item}")
