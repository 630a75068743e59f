"""A checkpoint of pipeline 2 × shard 2 × tensor 2 goes on under any other layout as if nothing had happened."""

import dataclasses
from pathlib import Path

import pytest

from llama_foundation.compose import compose
from llama_train.config import TrainConfig
from llama_train.prove.case import Case, Settings, Variant, part
from llama_train.prove.harness import compare, make_shards, run_case
from llama_train.prove.shrink import SEQUENCE_LENGTH, Room, shrink

WRITTEN, LAST = 2, 4
TWELVE = Variant("batch of 12", data={"batch_size": 12})  # divides over 1, 2 and 3 ranks
WRITER = {"pipeline": 2, "data_shard": 2, "tensor": 2}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all cases share shards, the uninterrupted run and the checkpoint."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def small(work: Path) -> TrainConfig:
    overrides = ["model=tiny", "steps=9", "data.shards=x", "data.sequence_length=32", "optimizer.max_grad_norm=0.5"]
    config, _ = shrink(compose("train", TrainConfig, overrides), Room(layers=4, tensor=4, kv_heads=4))
    make_shards(work / "shards", config.model.vocab_size, 2 * LAST * 12 * SEQUENCE_LENGTH)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(work / "shards")))


@pytest.fixture(scope="module")
def uninterrupted(small: TrainConfig, work: Path) -> Path:
    parts = (part(LAST, WRITER, batch_size=12),)
    (place,) = run_case(Case("uninterrupted", parts, TWELVE, gradient_steps=(WRITTEN,)), small, work)
    return place


@pytest.mark.parametrize("layout", [{"data_shard": 3}, {"tensor": 4}, {"pipeline": 4}, {}], ids=str)
def test_it_goes_on_with_the_same_batches_and_losses(
    layout: Settings, small: TrainConfig, work: Path, uninterrupted: Path
) -> None:
    parts = (part(WRITTEN, WRITER, batch_size=12), part(LAST, layout, batch_size=12))
    found = compare(run_case(Case("resumed", parts, TWELVE), small, work), uninterrupted)  # raises for other batches
    assert found.loss <= 1e-12
    assert found.norm <= 1e-10
    assert found.weight <= 1e-10
    assert found.gradient <= 1e-10
