"""How runs of DeepSpeed start: by its own launcher, and when a rank is lost while it initialises."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.llama_train.conftest import environment

ZERO_3 = ["engine=deepspeed", "engine.zero_stage=3", "cluster.device=cpu", "steps=3", "checkpoint.every=0"]

LOST = """
import os, signal
from llama_train.engine.deepspeed import engine
from llama_train.survive import neighbours

def initialize(**named):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.Signals[os.environ["LOST_BY"]])
    return started(**named)

def importing(*arguments):
    global started
    deepspeed = imported(*arguments)
    started, deepspeed.initialize = deepspeed.initialize, initialize
    return deepspeed

imported, engine.import_deepspeed = engine.import_deepspeed, importing
neighbours._machine = lambda: "machine of rank " + os.environ["RANK"]
from llama_train.__main__ import main
raise SystemExit(main())
"""
"""llama-train whose rank 1 sends itself a signal where DeepSpeed would cut the model.

The ranks take each other for processes of other machines: one of its own rank 0 would see end.
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    started: list[subprocess.Popen] = []

    def run(command: list[str], **variables: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment() | variables, start_new_session=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        with_children = os.getpgid(process.pid) if process.poll() is None else None
        if with_children is not None:
            os.killpg(with_children, signal.SIGKILL)
        process.wait(10)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.slow)])
def test_a_rank_lost_while_deepspeed_initialises_ends_the_other_which_names_it(
    tiny: list[str], tmp_path: Path, start: Callable, how: str
) -> None:
    """Without a launcher, which would end the other by itself.

    Without the mend, rank 0 waits 30 minutes in a process group of deepspeed 0.19.8.
    """
    port = free_port()
    ranks = []
    for rank in ("0", "1"):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-c", LOST, *tiny, *ZERO_3, "engine.timeout_seconds=8"]
        ranks.append(start(command, MASTER_PORT=port, LOST_BY=how, **variables))
    begun = time.monotonic()
    output, _ = ranks[0].communicate(timeout=90)
    assert time.monotonic() - begun < 60
    assert ranks[0].returncode == 3, output
    assert re.search(r"^error: rank 1 \(\S+\) is dead or stopped: ", output, re.MULTILINE), output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_deepspeeds_launcher_with_a_hostfile_starts_a_run(tiny: list[str], tmp_path: Path, start: Callable) -> None:
    """Two names of this machine stand for two nodes, where the launcher is started by hand: no ssh is needed."""
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": "auto", "overlap_comm": False}}))
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={tmp_path / 'hosts'}", "--no_ssh"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    arguments = [*tiny, *ZERO_3, f"engine.config_file={tmp_path / 'ds.json'}", "logging.console=lines"]
    nodes = [start([*launcher, f"--node_rank={rank}", "--module", "llama_train", *arguments]) for rank in (0, 1)]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "is deprecated" not in "".join(outputs)  # torch 2.13 says so of deepspeed 0.19.8's calls, in every step
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    stored = json.loads((run / "deepspeed.json").read_text())
    assert stored["zero_optimization"]["overlap_comm"] is False
    assert stored["gradient_accumulation_steps"] == 2  # 4 sequences on two ranks
    (line,) = re.findall(r"DeepSpeed: (\{.*\})", outputs[0])
    assert json.loads(line) == stored
