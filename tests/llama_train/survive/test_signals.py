import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llama_train.survive.signals import LAUNCHER_ENDED, SIGNALS, StopRequest, remember_stop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_by_name_and_handlers_come_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest() as stop:
        assert stop.requested is None
        assert stop.agreed() is None
        signal.raise_signal(number)
        assert stop.requested == number.name
        assert stop.agreed() == number.name
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_request_before_the_run_begins_stops_it_once():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        remember_stop()
        signal.raise_signal(signal.SIGUSR1)
        assert StopRequest().requested == "SIGUSR1"
        assert StopRequest().requested is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_first_signal_is_the_reason():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGUSR1"


def test_a_second_ctrl_c_interrupts_but_not_the_echo_of_the_first(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        now = 100.9
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT"
        now = 101.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


ORPHAN = textwrap.dedent("""
    import pathlib, sys, time
    from llama_train.survive.signals import StopRequest

    with StopRequest() as stop:
        assert stop.agreed() is None
        pathlib.Path(sys.argv[1]).write_text("ready")
        while stop.agreed() is None:
            time.sleep(0.02)
    pathlib.Path(sys.argv[1]).write_text(stop.requested)
""")


def test_a_rank_whose_launcher_is_killed_stops(tmp_path):
    said = tmp_path / "said"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "run"}
    launcher = subprocess.Popen([sys.executable, "-c", start, ORPHAN, str(said)], env=environment)
    _until(lambda: said.exists() and said.read_text() == "ready")
    launcher.kill()
    launcher.wait()
    _until(lambda: said.read_text() not in ("", "ready"))
    assert said.read_text() == LAUNCHER_ENDED


def _until(done):
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


RANK = textwrap.dedent("""
    import os, signal, sys, time
    import torch.distributed as dist
    from llama_train.survive.signals import StopRequest
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    with StopRequest() as stop:
        for step in range(1, 100):
            if rank == 1 and step == 7:
                os.kill(os.getpid(), signal.SIGUSR1)
            name = stop.agreed(dist.group.WORLD)
            if name:
                print(step, name, stop.requested)
                break
    dist.destroy_process_group()
""")


@pytest.mark.timeout(90)
def test_all_ranks_stop_at_the_same_step_when_one_is_asked(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert said == ["7 SIGUSR1 SIGUSR1\n"] * 2
