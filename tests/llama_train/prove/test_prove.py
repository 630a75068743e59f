"""The proof passes what is right and notices what is broken."""

import dataclasses
import json
from pathlib import Path

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError
from llama_train.config import TrainConfig
from llama_train.prove.__main__ import choose, prove
from llama_train.prove.case import BATCH_SIZE, Case, Settings, Variant, fault_applies, part
from llama_train.prove.harness import compare, run_case
from llama_train.prove.proof import Outcome, outcomes
from llama_train.prove.settings import ProveConfig
from llama_train.prove.shrink import STEPS, Room, shrink
from llama_train.prove.stretch import FAULTS

TIED = Variant("tied", model={"tied_embeddings": True})
PIPELINE = {"pipeline": 2, "layers_per_stage": [1, 3]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases of this file share shards and references."""
    return tmp_path_factory.mktemp("proof")


@pytest.fixture(scope="module")
def small() -> TrainConfig:
    overrides = ["model=tiny", "steps=9", "data.shards=x", "data.sequence_length=32", "optimizer.max_grad_norm=0.5"]
    return shrink(compose.compose("train", TrainConfig, overrides), Room(layers=4, tensor=2, kv_heads=2))[0]


def outcome(case: Case, small: TrainConfig, work: Path, fault: str | None = None) -> Outcome:
    (found,) = outcomes([case], small, work, fault)
    return found


def test_four_ranks_with_much_at_once_do_what_one_process_does(small: TrainConfig, work: Path) -> None:
    case = Case("pp2 tp2", (part(STEPS, PIPELINE | {"tensor": 2}),), TIED)
    found = outcome(case, small, work)
    assert found.passed, found
    assert found.differences is not None
    assert 0 < found.differences.loss < 1e-13  # far inside of the tolerance: equal but for the order of sums


def test_a_checkpoint_of_two_context_ranks_goes_on_in_one_process(small: TrainConfig, work: Path) -> None:
    case = Case("cp2 → 1 process", (part(7, {"context": 2}), part(STEPS, {})))
    assert outcome(case, small, work).passed
    lost = outcome(case, small, work, "lost_moments")
    assert lost.differences is not None and not lost.passed
    assert lost.differences.gradient < 1e-10, "it was right until it was resumed"
    assert lost.differences.loss > 1e-6


FAULTY: dict[str, tuple[Settings, Variant]] = {
    "gradient_scale": ({"data_shard": 2}, Variant()),
    "missed_reduction": ({"tensor": 2}, Variant()),
    "wrong_position": ({"context": 2}, Variant()),
    "dropped_micro_batch": ({"data_shard": 2, "pipeline": 2}, Variant()),
    "stale_tied_embedding": (PIPELINE, TIED),
    "local_divisor": ({"data_shard": 2}, Variant("a rank all masked", masked_rows=BATCH_SIZE // 2)),
    "local_norm": ({"pipeline": 2}, Variant()),
    "merged_groups": ({"data_shard": 2}, Variant()),
}
QUICK = ("missed_reduction", "wrong_position")


@pytest.mark.parametrize("fault", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAULTY])
def test_a_planted_fault_fails(fault: str, small: TrainConfig, work: Path) -> None:
    layout, variant = FAULTY[fault]
    case = Case("broken", (part(STEPS, layout),), variant)
    assert fault_applies(fault, case, tied=variant is TIED)
    found = outcome(case, small, work, fault)
    assert found.differences is not None and not found.error
    assert not found.passed
    if fault not in ("local_norm", "merged_groups"):  # these update differently, by the right gradients
        assert found.differences.gradient > 1e-6
        assert found.differences.worst_parameter.endswith(".weight")


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"data_shard": 2}, {"context": 2}])
def test_a_reduction_missed_by_fsdp_fails(layout: Settings, small: TrainConfig, work: Path) -> None:
    found = outcome(Case("broken", (part(STEPS, layout),)), small, work, "missed_reduction")
    assert found.differences is not None and not found.passed


def test_every_fault_has_a_test_that_plants_it() -> None:
    assert FAULTY.keys() | {"lost_moments"} == FAULTS.keys() - {"stale_weights"}, "that is ZeRO's"


def test_other_rows_than_those_of_one_process_are_refused(tmp_path: Path) -> None:
    def place(name: str, *ranks: tuple[int, list[str]]) -> Path:
        (tmp_path / name).mkdir()
        for number, (data_rank, rows) in enumerate(ranks):
            read = {"data_rank": data_rank, "steps": [["x", "y"], rows]}
            (tmp_path / name / f"rows-{number}.json").write_text(json.dumps(read))
        return tmp_path / name

    reference = place("reference", (0, ["a", "b"]))
    with pytest.raises(RunError, match="step 2 did not read the rows that one process reads"):
        compare([place("swapped", (0, ["b", "a"]))], reference)
    with pytest.raises(RunError, match="two ranks of data rank 0 did not read the same rows"):
        compare([place("apart", (0, ["a", "b"]), (0, ["a", "c"]))], reference)


def test_a_rank_that_dies_is_a_failed_case_with_its_last_words(small: TrainConfig, work: Path) -> None:
    found = outcome(Case("too many heads", (part(STEPS, {"tensor": 3}),)), small, work)
    assert not found.passed
    assert "layout.tensor=3 does not divide model.heads" in found.error


@pytest.mark.slow
def test_bf16_is_held_against_what_bf16_differs_from_itself(tmp_path: Path) -> None:
    given = ["model=tiny", "optimizer.learning_rate=1e-3", "prove.precision=bf16", "layout.tensor=2"]
    small, cases, _ = choose(compose.compose("prove", ProveConfig, given))
    for found in outcomes(cases, small, tmp_path):
        assert found.passed, found
        assert 1e-6 < found.limit.loss < 0.1
        assert found.limit.gradient < 0.5
    broken = [case for case in cases if fault_applies("gradient_scale", case, tied=False)]
    for found in outcomes(broken, small, tmp_path, "gradient_scale"):
        assert found.differences is not None and not found.passed


def test_a_planted_fault_ends_with_status_1_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model=tiny", "optimizer.learning_rate=1e-3", "prove.json=true", "prove.fault=gradient_scale"]
    assert prove(compose.compose("prove", ProveConfig, overrides)) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["precision"] == "fp64"
    assert [case["passed"] for case in printed["cases"]] == [False, False]
    first = printed["cases"][0]
    assert first["case"] == "shard2"
    assert first["differences"]["gradient"] == pytest.approx(0.5)
    assert first["differences"]["worst_parameter"].startswith("model.")


def test_a_fault_that_is_unknown_or_changes_nothing_is_refused() -> None:
    given = ["model=tiny", "optimizer.learning_rate=1e-3"]
    with pytest.raises(ConfigError, match=r"prove\.fault=gradient_scal is not known; use one of gradient_scale"):
        compose.compose("prove", ProveConfig, [*given, "prove.fault=gradient_scal"])
    config = compose.compose("prove", ProveConfig, [*given, "prove.fault=wrong_position"])
    with pytest.raises(ConfigError, match=r"prove\.fault=wrong_position changes nothing in the cases of .*own"):
        choose(config)


def test_one_beginning_is_run_once(small: TrainConfig, work: Path) -> None:
    list(outcomes([], small, work))  # makes the shards
    config = dataclasses.replace(small, data=dataclasses.replace(small.data, shards=str(work / "shards")))
    first = part(3, {"micro_batch_size": 4})
    one = run_case(Case("a", (first, part(4, {}))), config, work / "shared")
    two = run_case(Case("b", (first, part(4, {"micro_batch_size": 2}))), config, work / "shared")
    assert one[0] == two[0]
    assert one[1] != two[1]
