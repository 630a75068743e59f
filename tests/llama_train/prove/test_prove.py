"""The proof notices what is broken, and passes what is not."""

import dataclasses
import math
from pathlib import Path

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import ActivationCheckpointing, LayoutConfig, Precision, TrainConfig
from llama_train.prove.__main__ import ProveConfig
from llama_train.prove.harness import BATCH_SIZE, Case, Outcome, compare, make_shards, run_case
from llama_train.prove.shrink import STEPS, shrink

REFERENCE = Case("reference", ((1, STEPS),), micro_batch_size=BATCH_SIZE)
RESUMED = Case("2 ranks, then 1", ((2, 7), (1, STEPS)), micro_batch_size=2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A shrunk configuration with its shards, run in one process."""
    directory = tmp_path_factory.mktemp("proof")
    overrides = ["model=tiny", "steps=9", "data.shards=x", "data.sequence_length=32", "optimizer.max_grad_norm=0.5"]
    config = shrink(compose.compose("train", TrainConfig, overrides), BATCH_SIZE)
    make_shards(directory / "shards", config.model.vocab_size, 2 * STEPS * BATCH_SIZE * 32)
    config.data.shards = str(directory / "shards")
    run_case(REFERENCE, config, directory / "reference")
    return config, directory


def test_resuming_on_other_ranks_does_what_one_process_does(reference: tuple[TrainConfig, Path]) -> None:
    config, directory = reference
    engine = dataclasses.replace(config.engine, activation_checkpointing=ActivationCheckpointing.full)
    run_case(RESUMED, dataclasses.replace(config, engine=engine), directory / "resumed")
    outcome = compare(RESUMED, directory / "resumed", directory / "reference", 0.0)
    assert outcome.passed, outcome
    assert outcome.loss_difference < 1e-13  # far inside of the tolerance: equal but for the order of sums


def test_averaged_instead_of_summed_gradients_fail_with_a_parameter_named(
    reference: tuple[TrainConfig, Path],
) -> None:
    config, directory = reference
    case = Case("2 ranks", ((2, STEPS),), micro_batch_size=4)
    run_case(case, config, directory / "faulty", fault="gradient_scale")
    outcome = compare(case, directory / "faulty", directory / "reference", 0.0)
    assert not outcome.passed
    assert math.isclose(outcome.gradient_difference, 0.5)
    assert outcome.worst_parameter.endswith(".weight")


def test_a_nan_never_passes() -> None:
    good = Outcome("x", 0.0, 0.0, "", 0.0, 0.0, 1.0)
    assert good.passed
    for field in ("loss_difference", "gradient_difference", "weight_difference"):
        assert not dataclasses.replace(good, **{field: math.nan}).passed


def test_an_unknown_fault_is_refused(reference: tuple[TrainConfig, Path]) -> None:
    with pytest.raises(ConfigError, match=r"prove\.fault=gradient_scal is not known; use one of gradient_scale"):
        compose.compose("prove", ProveConfig, ["model=tiny", "prove.fault=gradient_scal"])


@pytest.mark.parametrize("name", ["llama1_7b", "llama2_70b", "llama3.1_405b", "3m"])
def test_a_shrunk_model_keeps_its_ratios_and_switches(name: str) -> None:
    config = compose.compose(
        "prove", ProveConfig, [f"model={name}", "engine.activation_checkpointing=full", "layout.micro_batch_size=3"]
    )
    small = shrink(config, BATCH_SIZE)
    before, after = config.model, small.model
    assert after.hidden_size <= 128
    assert after.layers <= 3
    assert (after.kv_heads == after.heads) == (before.kv_heads == before.heads)
    assert math.isclose(after.ffn_size / after.hidden_size, before.ffn_size / before.hidden_size, rel_tol=0.05)
    assert (after.rope_theta, after.rope_scaling) == (before.rope_theta, before.rope_scaling)
    assert small.engine.precision is Precision.fp64
    assert small.engine.activation_checkpointing is ActivationCheckpointing.full
    assert config.model.hidden_size == before.hidden_size
    assert before is config.model, "the user's configuration is left as it was"
    assert isinstance(small.layout, LayoutConfig)
