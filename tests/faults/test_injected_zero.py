"""Faults injected into whole runs of engine=deepspeed on two processes: docs/reliability.md holds for them, too."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_train.checkpoint.restore import open_checkpoint
from llama_train.data.amendments import read_amendments
from llama_train.observe.metrics import history
from tests.faults.test_injected import SPIKES, losses, messages
from tests.llama_train.test_train import assert_same_bits

pytestmark = pytest.mark.slow  # a run takes ten seconds, imports most of it

Train = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def train(tiny: list[str], launch: Callable) -> Train:
    """Run llama-train on two processes, with a stage of ZeRO, or natively."""

    def run(*overrides: str, stage: int | None = 3) -> subprocess.CompletedProcess:
        engine = ["engine=native"] if stage is None else ["engine=deepspeed", f"engine.zero_stage={stage}"]
        return launch([*tiny, *engine, "cluster.device=cpu", *overrides], processes=2)

    return run


@pytest.mark.parametrize("stage", [2, 3])
def test_killed_and_torn_runs_go_on_to_the_bits_of_one_left_alone(train: Train, tmp_path: Path, stage: int) -> None:
    assert train("name=alone", stage=stage).returncode == 0
    faults = ["+fault.kill='rank1@step7 rank0@step11'", "+fault.torn_checkpoint=rank1@step8"]
    ended = train(*faults, stage=stage)
    assert ended.returncode != 0 and "fault injected: kill=rank1@step7" in ended.stderr
    assert "rank 1 (" in ended.stderr  # the survivor names it
    assert train(*faults, stage=stage).returncode != 0
    assert train(*faults, stage=stage).returncode == 0
    told = messages(tmp_path / "run")
    assert any("checkpoint passed over" in message and "step-00000008" in message for message in told)
    assert len([message for message in told if "goes on after step 4" in message]) == 2
    assert_same_bits(tmp_path / "run" / "checkpoints", tmp_path / "alone" / "checkpoints")
    assert losses(tmp_path / "run") == losses(tmp_path / "alone")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_nan_gradient_is_skipped_as_the_native_engine_skips_it(train: Train, tmp_path: Path, stage: int) -> None:
    faults = ["survive.non_finite=skip", "+fault.nan_gradient=rank1@step6"]
    assert train(*faults, "name=native", stage=None).returncode == 0
    assert train(*faults, stage=stage).returncode == 0
    ours, theirs = (history(tmp_path / name / "metrics.jsonl") for name in ("run", "native"))
    assert [row["step"] for row in ours if row["skipped"]] == [6]
    for row, expected in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=5e-6)
        assert row["tokens"] == expected["tokens"]
    state = open_checkpoint(tmp_path / "run").state
    assert state["engine"] == {"adamw_step": 11.0}
    assert state["anomalies"]["interventions"] == 1
    assert any("memory or a processor is at fault" in message for message in messages(tmp_path / "run"))


def test_a_nan_gradient_stops_the_run_and_the_fast_tier_goes_on_right_before_it(train: Train, tmp_path: Path) -> None:
    assert train("name=alone").returncode == 0
    overrides = [f"checkpoint.fast={tmp_path / 'fast'}", "checkpoint.fast_every=1", "+fault.nan_gradient=rank0@step7"]
    ended = train(*overrides)
    assert ended.returncode != 0
    assert "error: step 7: loss=" in ended.stderr and "grad_norm=nan" in ended.stderr
    assert train(*overrides).returncode == 0
    assert any("goes on after step 6" in message for message in messages(tmp_path / "run"))
    assert_same_bits(tmp_path / "run" / "checkpoints", tmp_path / "alone" / "checkpoints")
    assert losses(tmp_path / "run") == losses(tmp_path / "alone")


@pytest.mark.parametrize("stage", [1, 3])
def test_a_spike_is_jumped_over_where_the_native_engine_jumps(train: Train, tmp_path: Path, stage: int) -> None:
    rewind = [*SPIKES, "survive.spike=rewind", "survive.most_interventions=1"]
    train(*rewind, stage=stage)
    train(*rewind, "name=native", stage=None)
    (amendment,) = read_amendments(tmp_path / "run")
    assert (amendment,) == read_amendments(tmp_path / "native")
    told = messages(tmp_path / "run")
    assert any(f"rewound to step {amendment.at_step}, jumping over {amendment.jump} batches" in m for m in told)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "native"), abs=5e-6)
    (jumped,) = (tmp_path / "run" / "logs").glob("jumped-over-at-step-*.jsonl")
    documents = [json.loads(line) for line in jumped.read_text().splitlines()]
    assert {document["step"] for document in documents} == set(
        range(amendment.at_step + 1, amendment.at_step + amendment.jump + 1)
    )


def test_a_storm_of_sigterm_leaves_a_checkpoint_and_a_hung_rank_is_named(train: Train, tmp_path: Path) -> None:
    assert train("name=alone").returncode == 0
    faults = ["+fault.sigterm_storm=rank1@step6", "+fault.hang=rank1@step9", "engine.timeout_seconds=10"]
    assert train(*faults).returncode == 0
    assert len(losses(tmp_path / "run")) == 6
    hung = train(*faults)
    assert hung.returncode != 0 and "rank 1 (" in hung.stderr
    assert train(*faults).returncode == 0
    assert any("goes on after step 6" in message for message in messages(tmp_path / "run"))
    assert_same_bits(tmp_path / "run" / "checkpoints", tmp_path / "alone" / "checkpoints")
    assert losses(tmp_path / "run") == losses(tmp_path / "alone")
