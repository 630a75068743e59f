"""The proof of DeepSpeed's engine passes what is right and notices what is broken."""

import dataclasses
import json
from pathlib import Path

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import ActivationCheckpointing, OffloadTo, Precision, TrainConfig
from llama_train.engine.deepspeed.checks import check_deepspeed, check_not_deepspeed
from llama_train.engine.deepspeed.settings import resolve_settings
from llama_train.model.size import parameter_count
from llama_train.prove.__main__ import choose
from llama_train.prove.case import Case, Part, Variant, fault_applies
from llama_train.prove.matrix import MASKED_ROWS
from llama_train.prove.proof import ZERO_BF16, ZERO_MOST, Outcome, outcomes
from llama_train.prove.settings import ProveConfig
from llama_train.prove.shrink import STEPS
from llama_train.prove.stretch import ZERO_FAULTS
from llama_train.prove.zero import zero
from llama_train.prove.zero_sizes import with_shrunk_sizes

GIVEN = ["model=tiny", "engine=deepspeed", "optimizer.learning_rate=3e-3", "schedule.warmup_steps=4"]


def chosen(*overrides: str) -> tuple[TrainConfig, list[Case], list[str]]:
    return choose(compose.compose("prove", ProveConfig, [*GIVEN, *overrides]))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases of this file share shards and references."""
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def proven(work: Path) -> dict[tuple[str, str], Outcome]:
    small, cases, _ = chosen("prove.matrix=reduced")
    return {(found.case, found.engine): found for found in outcomes(cases, small, work)}


def test_every_stage_does_what_one_process_and_fsdp2_do(proven: dict[tuple[str, str], Outcome]) -> None:
    for engine in ("native", "ZeRO-1", "ZeRO-2", "ZeRO-3"):
        found = proven["shard2", engine]
        assert found.passed, found
        assert found.clipped_steps == STEPS
        assert found.differences is not None and found.limit.loss <= ZERO_MOST and found.limit.norm <= ZERO_MOST
        assert found.differences.loss > 0  # fp32 that was cut otherwise


def test_a_run_that_changes_its_engine_at_every_checkpoint_does_what_one_that_stays_does(
    proven: dict[tuple[str, str], Outcome],
) -> None:
    engine = "native → ZeRO-3 → native → ZeRO-1 → native → ZeRO-2"
    found = proven["alternating, 5 changes", engine]
    assert found.passed, found


QUICK = ("local_norm", "stale_weights")
SHARED = {"data_shard": 2, "micro_batch_size": 2}


@pytest.mark.parametrize(
    "fault", [fault if fault in QUICK else pytest.param(fault, marks=pytest.mark.slow) for fault in ZERO_FAULTS]
)
def test_a_planted_fault_fails(fault: str, work: Path) -> None:
    small, _, _ = chosen()
    variant = MASKED_ROWS if fault == "local_divisor" else Variant()
    case = Case("broken", (Part(3, SHARED, zero(3)), Part(STEPS, SHARED, zero(1))), variant)
    assert fault_applies(fault, case, tied=False)
    (found,) = outcomes([case], small, work, fault)
    assert found.differences is not None and not found.error
    assert not found.passed, found


@pytest.mark.slow
def test_bf16_stays_within_its_noise(work: Path) -> None:
    small, cases, _ = chosen("prove.matrix=reduced", "prove.precision=bf16")
    for found in outcomes(cases, small, work / "bf16"):
        assert found.passed, found
        assert found.limit.loss == found.limit.norm == ZERO_BF16
        assert found.differences is not None and found.differences.loss > ZERO_MOST  # it is bf16


def test_the_full_matrix_has_every_stage_with_every_switch_and_both_ways_of_resuming() -> None:
    small, cases, notes = chosen("prove.matrix=full", "engine.zero_stage=2", "engine.compile=true")
    assert small.engine.precision is Precision.fp32
    assert [note.partition(":")[0] for note in notes] == ["engine.compile", "optimizer.max_grad_norm=1"]
    assert len({(case.name, case.engine_name) for case in cases}) == len(cases) >= 40
    changes = {tuple(part.engine_name for part in case.parts) for case in cases if len(case.parts) == 2}
    for stage in ("ZeRO-1", "ZeRO-2", "ZeRO-3"):
        assert {("native", stage), (stage, "native")} <= changes
        notes = {case.name.partition(", ")[2] for case in cases if case.engine_name == stage}
        assert {"a rank all masked", "tied", "optimizer offloaded", "recompute full"} <= notes
    for case in cases:
        assert len(case.name) <= 38 and case.world <= 4
        for part in case.parts:
            config = dataclasses.replace(small, engine=dataclasses.replace(small.engine, **part.engine))
            check_deepspeed(config) if part.zero else check_not_deepspeed(config.engine)


def test_own_takes_the_stage_and_the_switches_of_the_configuration() -> None:
    _, cases, _ = chosen("engine.zero_stage=2", "engine.offload_optimizer=cpu", "engine.activation_checkpointing=full")
    engines = [part.engine for case in cases for part in case.parts if part.zero]
    assert all(engine["zero_stage"] == 2 and engine["offload_optimizer"] is OffloadTo.cpu for engine in engines)
    assert all(engine["activation_checkpointing"] is ActivationCheckpointing.full for engine in engines)
    assert {case.engine_name for case in cases} == {"native", "ZeRO-2", "ZeRO-2 → native", "native → ZeRO-2"}


def test_deepspeeds_sizes_cut_the_shrunk_model_as_they_cut_a_large_one(tmp_path: Path) -> None:
    """Its own would keep every weight whole on all ranks: ZeRO-3 would be proven without gathering anything."""
    given = {"steps_per_print": 7, "zero_optimization": {"sub_group_size": 5e8, "stage3_max_live_parameters": 9}}
    (tmp_path / "ds.json").write_text(json.dumps(given | {"train_batch_size": 64, "gradient_accumulation_steps": 99}))
    file = f"engine.config_file={tmp_path / 'ds.json'}"
    small, _, notes = chosen(file, "data.batch_size=64")
    assert notes[0] == "engine.config_file: proven with sizes that fit the shrunk model"
    settings = resolve_settings(with_shrunk_sizes(small, tmp_path), 2)
    zero, elements = settings["zero_optimization"], parameter_count(small.model)
    assert settings["steps_per_print"] == 7 and zero["stage3_max_live_parameters"] == 9
    norm, matrix = small.model.hidden_size, small.model.hidden_size**2
    assert norm <= zero["stage3_param_persistence_threshold"] < matrix
    assert all(zero[size] * 4 <= elements for size in ("reduce_bucket_size", "sub_group_size"))
    _, _, notes = chosen(file, "data.batch_size=64", "prove.matrix=reduced")
    assert "engine.config_file: only in prove.matrix=own" in notes
    with pytest.raises(ConfigError, match=r"train_batch_size=64, but data.batch_size says 32"):
        chosen(file, "data.batch_size=32")


def test_what_deepspeed_cannot_prove_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prove.precision=fp64 .*no float64; use prove.precision=fp32"):
        chosen("prove.precision=fp64")
    with pytest.raises(ConfigError, match=r"layout.tensor=2 with engine=deepspeed"):
        chosen("layout.tensor=2")
    with pytest.raises(ConfigError, match=r"prove.fault=wrong_position changes nothing"):
        chosen("prove.fault=wrong_position")
