"""Runs of two processes under torchrun, killed, hung and stopped as clusters do it."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_train.checkpoint.restore import open_checkpoint
from llama_train.prove.harness import whole
from tests.llama_train.conftest import command, environment
from tests.llama_train.test_train import assert_same_bits, records


@pytest.fixture
def start() -> Callable[[list[str]], subprocess.Popen]:
    """Start `llama-train` on two processes; whatever is left of it is killed at the end of the test."""
    started = []

    def run(overrides: list[str]) -> subprocess.Popen:
        process = subprocess.Popen(
            command(overrides, processes=2),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        kill_group(process)


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def rank_pids(process: subprocess.Popen) -> list[int]:
    """The processes of the ranks, rank 0 first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranked = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = [v for v in variables if v.startswith(b"RANK=")]
        if rank:
            ranked[int(rank[0].split(b"=")[1])] = child
    return [ranked[rank] for rank in sorted(ranked)]


def wait_for_step(run: Path, step: int, process: subprocess.Popen, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        if (run / "metrics.jsonl").exists() and any(r["step"] >= step for r in complete(run)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def complete(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    return [r for r in map(json.loads, lines) if "loss" in r]


def final_history(run: Path) -> list[tuple]:
    """Of every step the record of its last attempt."""
    last = {record["step"]: record for record in sorted(complete(run), key=lambda r: r["attempt"])}
    return [(step, r["loss"], r["grad_norm"], r["tokens"]) for step, r in sorted(last.items())]


def test_killed_runs_end_with_the_bits_of_a_run_left_alone(
    tiny: list[str], tmp_path: Path, launch: Callable, start: Callable
) -> None:
    overrides = [*tiny, "steps=60", "checkpoint.every=5"]
    alone = launch([*overrides, "name=alone"], processes=2)
    assert alone.returncode == 0, alone.stderr
    run = tmp_path / "run"
    generator = random.Random(0)
    for attempt in range(2):
        process = start(overrides)
        wait_for_step(run, 8 + 20 * attempt, process)
        time.sleep(generator.random() * 0.3)
        os.kill(generator.choice(rank_pids(process)), signal.SIGKILL)
        process.wait(60)
        kill_group(process)
    resumed = launch(overrides, processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_bits(tmp_path / "alone" / "checkpoints", run / "checkpoints")
    assert final_history(run) == final_history(tmp_path / "alone")


def test_initial_weights_have_the_same_bits_on_one_and_two_ranks(
    tiny: list[str], tmp_path: Path, launch: Callable
) -> None:
    still = [*tiny, "steps=1", "optimizer.learning_rate=0"]  # the checkpoint after one step holds what it began with
    for name, processes in (("one", 1), ("two", 2)):
        done = launch([*still, f"name={name}"], processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (open_checkpoint(tmp_path / name) for name in ("one", "two"))
    weights = [name for name in one.tensors if name.startswith("weights/")]
    assert len(weights) == 2 * 9 + 3
    for name in weights:
        assert torch.equal(whole(one, name), whole(two, name)), name


def test_sigterm_leaves_a_checkpoint_of_the_last_step(tiny: list[str], tmp_path: Path, start: Callable) -> None:
    process = start([*tiny, "steps=100000", "checkpoint.every=0"])
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    steps = [r["step"] for r in records(tmp_path / "run")]
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert saved == [f"step-{max(steps):08d}"], output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"] is False


@pytest.mark.parametrize(
    ("how", "layout"),
    [
        (signal.SIGKILL, "data_shard=2"),
        (signal.SIGSTOP, "data_shard=2"),
        (signal.SIGSTOP, "tensor=2"),
        (signal.SIGSTOP, "pipeline=2"),
    ],
    ids=["dead", "hung", "hung in a tensor group", "hung in a pipeline"],
)
def test_a_lost_rank_ends_the_others_with_its_name(
    tiny: list[str], tmp_path: Path, start: Callable, how: signal.Signals, layout: str
) -> None:
    process = start([*tiny, "steps=100000", "checkpoint.every=0", "engine.timeout_seconds=6", f"layout.{layout}"])
    wait_for_step(tmp_path / "run", 3, process)
    lost = time.monotonic()
    survivor, other = rank_pids(process)
    os.kill(other, how)
    while Path(f"/proc/{survivor}").exists():  # the deadline, and the seconds it takes to ask the others
        assert time.monotonic() - lost < 6 + 15
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(other, signal.SIGKILL)  # torchrun would give it 30 s more to answer
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"rank 1 \(", output), output
    # The survivor says where it waited: step, file, line, function and the collective.
    assert re.search(r"in step \d+.* at \w+/\w+\.py:\d+ in \w+ \(\w+\)", output), output


def test_a_user_error_is_printed_once_without_a_traceback(tiny: list[str], launch: Callable) -> None:
    result = launch([*tiny, "model.heads=5"], processes=2)
    assert result.returncode != 0
    assert result.stderr.count("error: model.heads=5") == 1
    assert "llama_train/" not in result.stderr.split("error: model.heads=5")[0]
    assert not re.search(r'File ".*llama_train', result.stderr)


@pytest.mark.parametrize("layout", ["data_shard=-1", "tensor=2", "pipeline=2"])
def test_tasks_run_in_the_loop_of_two_processes_and_give_the_numbers_of_one(
    with_tasks: list[str], launch: Callable, tmp_path: Path, layout: str
) -> None:
    found, held_out = {}, {}
    asked = [*with_tasks, "steps=2", "validation.tasks_every=1", "validation.tasks_shots=1", "validation.batches=2"]
    for processes in (1, 2):
        name = f"of-{processes}"
        done = launch([*asked, f"name={name}", *([f"layout.{layout}"] if processes == 2 else [])], processes)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        values = [line["values"] for line in lines if line["kind"] == "event" and line["values"]]
        found[processes] = [each for each in values if any(name.startswith("tasks/") for name in each)]
        held_out[processes] = [line["validation_loss"] for line in lines if line["kind"] == "validation"]
        told = [line["message"] for line in lines if line["kind"] == "event" and line.get("message")]
        assert any("task long could not be run: the continuation" in message for message in told)
    assert [values.keys() for values in found[1]] == [TASK_VALUES] * 2
    for one, two in zip(found[1], found[2], strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    assert len(held_out[1]) == 1
    assert held_out[2] == pytest.approx(held_out[1], rel=1e-6)


TASK_VALUES = {"tasks/mats/acc", "tasks/mats/acc_norm", "tasks/next/acc", "tasks/next/perplexity"}
