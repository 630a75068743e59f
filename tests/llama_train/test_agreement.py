"""Ranks that run other code or versions are found before anything starts, and named."""

import json
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from llama_foundation.errors import RunError
from llama_train import agreement
from llama_train.agreement import agree, difference, leave_together, other_command, software
from tests.llama_train.conftest import environment


def all_agree(problems: list[str | None], size: int | None = None, seconds: float = 30.0) -> list[str]:
    """What each rank is told; "" where it may go on."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    size = size or len(problems)
    said = [""] * len(problems)

    def be(rank: int) -> None:
        try:
            agree(store.clone(), rank, size, problems[rank], seconds)
        except RunError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_ranks_that_are_alike_go_on() -> None:
    assert all_agree([None, None, None]) == ["", "", ""]


def test_one_that_differs_ends_all_with_its_name() -> None:
    assert (
        all_agree([None, None, "rank 2 (node7) runs torch 2.11.0 instead of 2.13.0"])
        == ["rank 2 (node7) runs torch 2.11.0 instead of 2.13.0"] * 3
    )


def test_a_rank_that_does_not_come_is_named() -> None:
    assert all_agree([None, None], size=3, seconds=1.0) == ["rank 2 of 3 did not begin within 1 s of the others"] * 2


def test_a_rank_that_comes_late_hears_that_the_configuration_was_refused() -> None:
    """Without torchrun rank 0 keeps the store; were it gone, the late rank would look for it for ten minutes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0"}
    refused = [sys.executable, "-m", "llama_train", "data.shards=x", "steps=1", "model.heads=5"]
    with subprocess.Popen(refused, env=environment() | meeting, stderr=subprocess.PIPE, text=True) as leading:
        store = dist.TCPStore("127.0.0.1", port, 2, timeout=timedelta(seconds=60))
        store = dist.PrefixStore("attempt-0", store)
        verdict = json.loads(store.get("verdict"))
        assert verdict == {"status": 2}
        time.sleep(0.5)
        assert leading.poll() is None
        leave_together(store, 1, 2)
        assert leading.wait(10) == 2
        assert leading.stderr is not None and "error: model.heads=5" in leading.stderr.read()


def test_what_differs_is_said_with_both_versions() -> None:
    mine = {"python": "3.11.7", "torch": "2.13.0", "llama-train": "aa"}
    assert difference(mine, dict(mine)) is None
    assert difference(mine, mine | {"torch": "2.11.0", "llama-train": "bb"}) == (
        "torch 2.13.0 instead of 2.11.0, llama-train aa instead of bb"
    )


def test_other_arguments_are_said_in_whatever_order_they_come() -> None:
    assert other_command(["a=1", "layout.tensor=2"], ["layout.tensor=2", "a=1"]) is None
    assert other_command(["a=1", "layout.tensor=4"], ["a=1", "layout.tensor=2"]) == (
        "layout.tensor=4 instead of layout.tensor=2"
    )
    assert other_command([], ["a=1"]) == "fewer instead of a=1"


def test_any_change_of_the_source_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "llama_train" / "agreement.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(agreement, "__file__", str(source))
    before = software()
    (tmp_path / "llama_train" / "deep").mkdir()
    (tmp_path / "llama_train" / "deep" / "x.py").write_text("# one word\n")
    assert software()["llama-train"] != before["llama-train"]
    assert software()["torch"] == before["torch"]


def test_a_rank_with_other_code_ends_the_job_before_it_begins(tiny: list[str], tmp_path: Path) -> None:
    # Rank 1 runs the same package with one version more in its name.
    program = tmp_path / "start.py"
    program.write_text(
        "import os, sys\n"
        "from llama_train import __main__ as main\n"
        "real = main.software\n"
        "main.software = lambda: real() | ({'torch': '1.0'} if os.environ['RANK'] == '1' else {})\n"
        "sys.exit(main.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program), *tiny],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: rank 1 (") == 1
    assert "runs torch 1.0 instead of" in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
