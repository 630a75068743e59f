"""A run as a whole: what it leaves, how it stops and goes on, and what it refuses."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from llama_foundation import compose
from llama_foundation.errors import ConfigError, NumbersError, RunError
from llama_train.__main__ import _lead
from llama_train.checkpoint.huggingface import import_native
from llama_train.checkpoint.restore import Checkpoint, open_checkpoint
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import TrainConfig
from llama_train.distributed import meet
from llama_train.engine.engine import Chunk
from llama_train.prove.harness import make_shards, whole
from llama_train.survive.lock import RunLock


def train_here(overrides: list[str]) -> None:
    """Run llama-train in this process."""
    config = compose.compose("train", TrainConfig, overrides)
    assert _lead(config, meet(10), 1, {}) == 0


def refusal(overrides: list[str], capsys: pytest.CaptureFixture, statuses: tuple[int, ...] = (2, 3)) -> str:
    """Run llama-train in this process, which ends with one of `statuses`, and return the error it prints."""
    capsys.readouterr()
    config = compose.compose("train", TrainConfig, overrides)
    assert _lead(config, meet(10), 1, {}) in statuses
    return capsys.readouterr().err


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: whole(checkpoint, name) for name in checkpoint.tensors}


def assert_same_bits(ours: Path, theirs: Path) -> None:
    a, b = tensors(open_checkpoint(ours)), tensors(open_checkpoint(theirs))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_learns_and_leaves_its_records(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "steps=30", "validation.batches=2", "validation.every=15"])
    run = tmp_path / "run"
    rows = records(run)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert {"step", "attempt", "tokens", "loss", "lr", "grad_norm", "seconds", "tokens_per_second"} <= rows[0].keys()
    assert abs(rows[0]["loss"] - math.log(101)) < 0.1  # small initial weights: almost a uniform guess
    assert rows[-1]["loss"] < rows[0]["loss"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["loss_first"] == rows[0]["loss"]
    assert summary["loss_last"] == rows[-1]["loss"]
    assert 0 < summary["validation_loss"] < math.log(101) + 0.1
    assert [p.name for p in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000028", "step-00000030"]


def test_validation_of_each_source_is_recorded_and_adds_up(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "steps=4", "validation.batches=3", "validation.every=2"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    totals = [line["validation_loss"] for line in lines if line["kind"] == "validation"]
    parts = [line["values"] for line in lines if line["kind"] == "event" and line["values"]]
    assert len(totals) == len(parts) == 2
    for total, part in zip(totals, parts, strict=True):
        assert part.keys() == {"validation/loss/even", "validation/loss/odd"}
        assert min(part.values()) < total < max(part.values())


def test_tasks_run_on_the_live_model_and_change_nothing(with_tasks: list[str], tmp_path: Path) -> None:
    train_here([*with_tasks, "name=alone"])
    train_here([*with_tasks, "validation.tasks_every=4"])
    assert_same_bits(tmp_path / "alone" / "checkpoints", tmp_path / "run" / "checkpoints")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    events = [line for line in lines if line["kind"] == "event"]
    assert [event["step"] for event in events if event["values"]] == [4, 8, 12]
    assert events[1]["values"].keys() == {
        "tasks/mats/acc",
        "tasks/mats/acc_norm",
        "tasks/next/acc",
        "tasks/next/perplexity",
    }
    assert "task long could not be run: the continuation" in events[0]["message"]


def test_a_task_of_programs_is_refused_before_the_first_step(
    with_tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    program = {"task_id": "T/0", "prompt": "def f():", "entry_point": "f", "test": "def check(f): pass"}
    (tmp_path / "tasks" / "programs.jsonl").write_text(json.dumps(program) + "\n")
    error = refusal([*with_tasks, "validation.tasks_every=4"], capsys)
    assert "programs asks for programs, which are never run while training" in error


def test_a_task_that_does_not_exist_is_refused_before_the_first_step(
    with_tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = refusal([*with_tasks, "validation.tasks_every=4", "validation.tasks=[mets]"], capsys)
    assert "mets is not a task of" in error and "did you mean mats?" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match=r"validation.tasks_every=4 needs validation.task_files=DIR"):
        train_here([*with_tasks, "validation.tasks_every=4", "validation.task_files=null"])


def test_stopping_and_resuming_gives_the_bits_of_a_run_left_alone(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=alone"])
    train_here([*tiny, "name=stopped", "stop_at_step=5"])
    train_here([*tiny, "name=stopped"])
    assert_same_bits(tmp_path / "alone" / "checkpoints", tmp_path / "stopped" / "checkpoints")
    alone, stopped = records(tmp_path / "alone"), records(tmp_path / "stopped")
    assert [(r["step"], r["loss"], r["grad_norm"], r["tokens"]) for r in alone] == [
        (r["step"], r["loss"], r["grad_norm"], r["tokens"]) for r in stopped
    ]
    assert [r["attempt"] for r in stopped] == [1] * 5 + [2] * 7


def test_full_activation_checkpointing_changes_no_bit(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=plain"])
    train_here([*tiny, "name=recomputed", "engine.activation_checkpointing=full"])
    assert_same_bits(tmp_path / "plain" / "checkpoints", tmp_path / "recomputed" / "checkpoints")


def test_asynchronous_checkpoints_hold_the_same_bits(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=plain"])
    train_here([*tiny, "name=background", "checkpoint.asynchronous=true"])
    for step in ("step-00000008", "step-00000012"):
        assert_same_bits(tmp_path / "plain" / "checkpoints" / step, tmp_path / "background" / "checkpoints" / step)


def test_bf16_keeps_float32_weights_and_follows_float32(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=full"])
    train_here([*tiny, "name=half", "engine.precision=bf16"])
    checkpoint = open_checkpoint(tmp_path / "half" / "checkpoints")
    assert {entry.dtype for entry in checkpoint.tensors.values()} == {torch.float32}
    full, half = records(tmp_path / "full"), records(tmp_path / "half")
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(full, half, strict=True)]
    assert 0 < max(differences) < 1e-2


def test_init_optimizer_takes_the_state_too(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train_here([*tiny, "name=first"])
    taken = [f"checkpoint.init_from={tmp_path / 'first'}", "checkpoint.init_optimizer=true", "steps=1"]
    train_here([*tiny, "name=second", *taken, "optimizer.learning_rate=0", "optimizer.max_grad_norm=1e-9"])
    first, second = (open_checkpoint(tmp_path / name / "checkpoints") for name in ("first", "second"))
    assert (first.state["engine"]["adamw_step"], second.state["engine"]["adamw_step"]) == (12, 13)
    for name in first.tensors:  # gradients clipped to nothing leave the moments as they were, but for their decay
        decay = {"exp_avg": 0.9, "exp_avg_sq": 0.95}.get(name.split("/")[1], 1.0)
        torch.testing.assert_close(whole(second, name), decay * whole(first, name), rtol=1e-4, atol=1e-8)
    import_native(first, tmp_path / "weights")
    taken[0] = f"checkpoint.init_from={tmp_path / 'weights'}"
    assert "is no checkpoint with optimizer state; llama-convert" in refusal([*tiny, "name=third", *taken], capsys)


def test_init_from_takes_the_weights_and_a_fresh_optimizer(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=first"])
    train_here(
        [*tiny, "name=second", f"checkpoint.init_from={tmp_path / 'first'}", "steps=1", "optimizer.learning_rate=0"]
    )
    first, second = (tensors(open_checkpoint(tmp_path / n / "checkpoints")) for n in ("first", "second"))
    weights = [name for name in first if name.startswith("weights/")]
    assert weights
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert open_checkpoint(tmp_path / "second").state["engine"] == {"adamw_step": 1.0}


def test_resuming_with_another_model_names_the_setting(tiny: list[str], capsys: pytest.CaptureFixture) -> None:
    train_here([*tiny, "stop_at_step=1"])
    assert "model.rope_theta was 10000.0, now 5000.0" in refusal([*tiny, "model.rope_theta=5000"], capsys)


def test_resuming_on_other_shards_is_refused(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train_here([*tiny, "stop_at_step=1"])
    make_shards(tmp_path / "other", 101, 9_000)
    error = refusal([*tiny, f"data.shards={tmp_path / 'other'}"], capsys)
    assert re.search(r"does not hold what .*step-00000001 was trained on", error)


def test_shards_with_a_larger_vocabulary_than_the_model_are_refused(
    tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert "has 101 tokens, but model.vocab_size=100" in refusal([*tiny, "model.vocab_size=100"], capsys)


def test_more_tokens_per_batch_than_there_are_is_refused(tiny: list[str], capsys: pytest.CaptureFixture) -> None:
    assert "one batch of data.batch_size=100000 takes 3200001" in refusal([*tiny, "data.batch_size=100000"], capsys)


def test_a_sequence_longer_than_the_context_is_refused(tiny: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.sequence_length=64 is longer than model\.context=32"):
        train_here([*tiny, "data.sequence_length=64"])


def test_a_second_run_in_the_same_directory_is_refused(tiny: list[str], tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"), pytest.raises(RunError, match=r"run is in use by process \d+"):
        train_here(tiny)


def save_weights(directory: Path, weights: dict[str, torch.Tensor], state: dict) -> None:
    store = CheckpointStore(directory, None, keep_last=1, keep_every=0, asynchronous=False)
    store.save(2, (Chunk(name, tuple(t.shape), (0,) * t.dim(), t) for name, t in weights.items()), state)


def test_weights_of_another_tokenizer_are_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train_here([*tiny, "name=good", "steps=1"])
    good = open_checkpoint(tmp_path / "good")
    weights = {name: tensor for name, tensor in tensors(good).items() if name.startswith("weights/")}
    save_weights(tmp_path / "foreign", weights, good.state | {"tokenizer": "another"})
    error = refusal([*tiny, f"checkpoint.init_from={tmp_path / 'foreign'}"], capsys)
    assert "made by tokenizer proof, but the weights were trained with tokenizer another" in error


def test_a_loss_that_is_not_finite_stops_with_the_documents_named(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train_here([*tiny, "name=good", "steps=2"])
    good = open_checkpoint(tmp_path / "good")
    weights = {name: tensor for name, tensor in tensors(good).items() if name.startswith("weights/")}
    weights["weights/model.norm.weight"][3] = math.nan
    save_weights(tmp_path / "poisoned", weights, good.state)
    error = refusal([*tiny, f"checkpoint.init_from={tmp_path / 'poisoned'}"], capsys, (NumbersError.exit_code,))
    assert "step 1: loss=nan" in error
    assert re.search(r"(even|odd): random, row \d+", error)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*")), "nothing poisoned may be saved"


def test_amendments_jump_over_batches_and_cannot_rewrite_what_was_done(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train_here([*tiny, "name=plain"])
    amendments = tmp_path / "run" / "amendments.json"
    train_here([*tiny, "stop_at_step=4"])
    amendments.write_text('[{"at_step": 4, "jump": 2}]')
    train_here([*tiny, "stop_at_step=6"])
    plain, jumped = records(tmp_path / "plain"), records(tmp_path / "run")
    assert jumped[3]["loss"] == plain[3]["loss"]
    assert jumped[4]["batch_tokens"] == plain[6]["batch_tokens"]
    assert jumped[4]["loss"] != plain[4]["loss"]
    amendments.write_text('[{"at_step": 2, "jump": 2}]')
    assert "amendments can only be appended" in refusal(tiny, capsys)
