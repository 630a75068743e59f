"""Every layout of configs/layout/ fits the devices, the model and the engine settings that its first line states."""

import re

import pytest

from llama_foundation.compose import CONFIGS, compose
from llama_train.config import TrainConfig
from llama_train.plan.hardware import hardware_of
from llama_train.plan.recipe import stages
from llama_train.plan.search import evaluate, why_not

READY = sorted(path.stem for path in (CONFIGS / "layout").glob("*.yaml") if path.stem != "default")


@pytest.mark.parametrize("name", READY)
def test_a_ready_layout_fits_where_its_name_says(name: str) -> None:
    first = (CONFIGS / "layout" / f"{name}.yaml").read_text().splitlines()[0]
    found = re.fullmatch(r"# llama-train (.*); (\d+) GPUs", first)
    assert found, first
    config = compose("train", TrainConfig, [*found[1].split(), "data.shards=x"])
    hardware, devices = hardware_of(config.cluster), int(found[2])
    for stage in stages(config):
        candidate = evaluate(config, devices, hardware, stage)
        assert candidate.fits(hardware, 0.05), why_not(candidate, devices, hardware, 0.05)


def test_the_published_405b_layout_would_not_fit_without_recomputation() -> None:
    """So that the test above can fail: its engine settings are needed."""
    overrides = ["layout=405b_8192gpus", "experiment=llama3.1_405b", "cluster=h100x8", "engine.precision=bf16"]
    config = compose("train", TrainConfig, [*overrides, "data.shards=x"])
    hardware = hardware_of(config.cluster)
    candidate = evaluate(config, 8192, hardware, stages(config)[-1])
    assert not candidate.fits(hardware, 0.05)
    assert "engine.activation_checkpointing=full" in why_not(candidate, 8192, hardware, 0.05)
