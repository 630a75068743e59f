"""Faults injected by hand into runs of one process, and what becomes of the run."""

import json
import time
from pathlib import Path

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.__main__ import _lead
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.config import TrainConfig
from llama_train.data.amendments import Amendment, append_amendment, read_amendments
from llama_train.data.order import TokenOrder
from llama_train.distributed import meet
from llama_train.engine.build import build_engine
from llama_train.observe.metrics import history
from llama_train.optimizer.schedule import learning_rate
from llama_train.parallel.resolve import resolve_layout
from llama_train.prove.harness import whole
from llama_train.survive.fault_plan import Fault, parse_faults
from tests.llama_train.test_train import assert_same_bits, tensors


def train_here(overrides: list[str]) -> int:
    """Run llama-train in this process; return its exit status."""
    config = compose.compose("train", TrainConfig, overrides)
    return _lead(config, meet(10), 1, {})


def messages(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["kind"] == "event"]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in history(run / "metrics.jsonl")]


@pytest.fixture
def alone(tiny: list[str], tmp_path: Path) -> Path:
    """The run that nothing happens to."""
    assert train_here([*tiny, "name=alone"]) == 0
    return tmp_path / "alone"


def test_a_plan_is_parsed_and_a_bad_one_refused_by_name() -> None:
    assert parse_faults({"kill": "rank2@step7 rank0@step9", "slow": "rank1@step3:0.25"}) == (
        Fault("kill", 2, 7),
        Fault("kill", 0, 9),
        Fault("slow", 1, 3, 0.25),
    )
    with pytest.raises(ConfigError, match=r"fault\.kil: there is no such fault; did you mean kill\?"):
        parse_faults({"kil": "rank0@step1"})
    for place in ("", "2@7", "rank2", "rank0@step0", "rank0@step1:5"):
        with pytest.raises(ConfigError, match="is not a rank and a step"):
            parse_faults({"kill": place})
    with pytest.raises(ConfigError, match="is no bit"):
        parse_faults({"bit_flip": "rank0@step1:64"})
    with pytest.raises(ConfigError, match=r"fault.kill=7: '7' is not a rank"):
        compose.compose("train", TrainConfig, ["data.shards=x", "steps=1", "+fault.kill=7"])


def test_a_fault_for_a_rank_that_is_not_there_is_refused(tiny: list[str], capsys: pytest.CaptureFixture) -> None:
    assert train_here([*tiny, "+fault.kill=rank2@step7"]) == 2
    assert "fault.kill=rank2@step7: this run has the ranks 0 to 0" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["torn_checkpoint", "deleted_rank_file"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    tiny: list[str], tmp_path: Path, alone: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    overrides = [*tiny, f"+fault.{kind}=rank0@step8"]
    assert train_here([*overrides, "stop_at_step=8"]) == 0
    assert f"fault injected: {kind}=rank0@step8" in capsys.readouterr().err
    assert train_here(overrides) == 0
    told = messages(tmp_path / "run")
    assert any("FAULTS ARE INJECTED INTO THIS RUN" in message for message in told)
    assert any("checkpoint passed over" in message and "step-00000008" in message for message in told)
    assert any("goes on after step 4" in message for message in told)
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")
    assert losses(tmp_path / "run") == losses(alone)


def test_a_checkpoint_with_a_flipped_bit_is_passed_over(tiny: list[str], tmp_path: Path, alone: Path) -> None:
    assert train_here([*tiny, "stop_at_step=8"]) == 0
    path = tmp_path / "run" / "checkpoints" / "step-00000008" / "rank-00000.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # sizes are right, so this is found while the tensors are read
    path.write_bytes(data)
    assert train_here(tiny) == 0
    assert any("checkpoint passed over" in m and "damaged: bytes" in m for m in messages(tmp_path / "run"))
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")


def test_when_no_checkpoint_is_good_the_run_does_not_start_anew(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train_here([*tiny, "stop_at_step=4"]) == 0
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "rank-00000.bin").unlink()
    assert train_here(tiny) == 2
    assert "no checkpoint is good" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoint(
    tiny: list[str], tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = [*tiny, "+fault.disk_full=rank0@step8"]
    assert train_here(overrides) == 2
    error = capsys.readouterr().err
    assert "step 8 is not saved" in error and "No space left on device" in error and "step-00000004 stays" in error
    assert open_checkpoint(tmp_path / "run").step == 4
    assert train_here(overrides) == 0
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")


def test_a_storm_of_sigterm_leaves_one_checkpoint_and_a_run_that_goes_on(
    tiny: list[str], tmp_path: Path, alone: Path
) -> None:
    overrides = [*tiny, "+fault.sigterm_storm=rank0@step3:50"]
    assert train_here(overrides) == 0
    stopped_at = open_checkpoint(tmp_path / "run").step
    assert stopped_at == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"] is False
    assert train_here(tiny) == 0
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")


def test_a_clock_that_jumps_changes_nothing(
    tiny: list[str], tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", time.time)  # the fault's change ends with this test
    before = time.time()
    assert train_here([*tiny, "+fault.clock_jump=rank0@step5:1000000"]) == 0
    assert time.time() - before > 9e5
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")
    assert all(0 <= row["seconds"] < 60 for row in history(tmp_path / "run" / "metrics.jsonl"))


def test_a_skipped_nan_step_equals_the_reference_that_never_saw_it(tiny: list[str], tmp_path: Path) -> None:
    assert train_here([*tiny, "survive.non_finite=skip", "+fault.nan_gradient=rank0@step6"]) == 0
    run = tmp_path / "run"
    # The reference is a loop of its own, which leaves out that batch's update and keeps every step's learning rate.
    config = compose.compose("train", TrainConfig, tiny)
    order = TokenOrder(config.data, config.steps, config.seed, ())
    from llama_train.distributed import distributed

    with distributed("cpu", meet(10), 60) as world:
        layout = resolve_layout(config, 1, 0)
        engine = build_engine(config, layout, world.device)
        for step in (step for step in range(config.steps) if step != 5):
            rate = learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)
            engine.step(order.local_micro_batches(step, 0, 1, 1), rate)
        expected = {chunk.name: chunk.tensor.clone() for chunk in engine.chunks()}
        scalars = engine.scalars()
    checkpoint = open_checkpoint(run)
    found = tensors(checkpoint)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name
    assert checkpoint.state["engine"] == scalars == {"adamw_step": 11.0}
    assert checkpoint.state["anomalies"]["interventions"] == 1
    rows = history(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["skipped"]] == [6]
    assert any("update refused: loss" in message and "grad_norm nan" in message for message in messages(run))
    # Computed again the gradient is finite: the fault was the machine's, not the batch's.
    assert any("memory or a processor is at fault" in message for message in messages(run))


def test_a_step_that_is_computed_twice_changes_nothing(tiny: list[str], tmp_path: Path, alone: Path) -> None:
    assert train_here([*tiny, "survive.replay_steps=[3,7]"]) == 0
    told = [message for message in messages(tmp_path / "run") if "replayed" in message]
    assert len(told) == 2 and all("bit by bit" in message for message in told)
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")
    assert losses(tmp_path / "run") == losses(alone)


def test_past_the_limit_a_run_of_bad_steps_stops(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    faults = "+fault.nan_gradient='rank0@step3 rank0@step4 rank0@step5'"
    assert train_here([*tiny, "survive.non_finite=skip", "survive.most_interventions=2", faults]) == 3
    error = capsys.readouterr().err
    assert "step 5:" in error and "survive.most_interventions=2 updates skipped and rewinds are used up" in error


SPIKES = [
    "survive.spike_window=4",
    "survive.spike_sigma=1.2",
    "optimizer.learning_rate=1e-6",  # losses only scatter, so some are far above the ones before
    "checkpoint.every=3",
    "steps=20",
]


def test_bad_numbers_end_a_run_with_a_status_of_its_own(tiny: list[str], capsys: pytest.CaptureFixture) -> None:
    assert train_here([*tiny, *SPIKES, "survive.spike=skip", "survive.most_interventions=0"]) == 4
    assert "survive.most_interventions=0 updates skipped and rewinds are used up" in capsys.readouterr().err


def test_a_spike_is_jumped_over_by_an_amendment(tiny: list[str], tmp_path: Path) -> None:
    overrides = [*tiny, *SPIKES, "survive.spike=rewind", "survive.most_interventions=1"]
    train_here(overrides)
    run = tmp_path / "run"
    (amendment,) = read_amendments(run)
    assert amendment.at_step % 3 == 0 and amendment.at_step > 0
    told = messages(run)
    assert any(f"rewound to step {amendment.at_step}, jumping over {amendment.jump} batches" in m for m in told)
    (jumped,) = (run / "logs").glob("jumped-over-at-step-*.jsonl")
    documents = [json.loads(line) for line in jumped.read_text().splitlines()]
    spike = amendment.at_step + amendment.jump
    assert {document["step"] for document in documents} == set(range(amendment.at_step + 1, spike + 1))
    # A run that knew of the amendment from the beginning and only logs has the same losses up to the next spike.
    append_amendment(tmp_path / "told", amendment)
    assert train_here([*tiny, *SPIKES, "name=told"]) == 0
    after = losses(run)
    assert len(after) > amendment.at_step
    assert after == losses(tmp_path / "told")[: len(after)]
    assert read_amendments(tmp_path / "told") == (Amendment(amendment.at_step, amendment.jump),)


def test_a_spike_is_skipped_or_only_logged(tiny: list[str], tmp_path: Path) -> None:
    assert train_here([*tiny, *SPIKES, "survive.spike=skip", "name=skip"]) == 0
    assert train_here([*tiny, *SPIKES, "name=log"]) == 0
    logged = [m for m in messages(tmp_path / "log") if "loss spike" in m]
    skipped = [row["step"] for row in history(tmp_path / "skip" / "metrics.jsonl") if row["skipped"]]
    assert logged and skipped
    assert not any(row["skipped"] for row in history(tmp_path / "log" / "metrics.jsonl"))
    first = skipped[0]
    assert losses(tmp_path / "skip")[:first] == losses(tmp_path / "log")[:first]


@pytest.mark.parametrize(("per_node", "kept"), [("false", [6]), ("true", [5, 6])])
def test_two_tiers_and_the_newest_of_both_is_used(
    tiny: list[str], tmp_path: Path, alone: Path, per_node: str, kept: list[int]
) -> None:
    fast = tmp_path / "fast"
    overrides = [*tiny, f"checkpoint.fast={fast}", "checkpoint.fast_every=1", "+fault.nan_gradient=rank0@step7"]
    overrides.append(f"checkpoint.fast_per_node={per_node}")
    assert train_here(overrides) == 3  # ends in the middle of step 7
    (mine,) = fast.iterdir()
    assert mine.name.startswith("run-")
    assert sorted(path.name for path in mine.rglob("step-*")) == [f"step-{step:08d}" for step in kept]
    assert train_here(overrides) == 0
    assert any("goes on after step 6" in message for message in messages(tmp_path / "run"))
    assert_same_bits(tmp_path / "run" / "checkpoints", alone / "checkpoints")
    assert len(whole(open_checkpoint(tmp_path / "run"), "weights/model.norm.weight"))
