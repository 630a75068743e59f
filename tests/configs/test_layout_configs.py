"""Every ready layout fits the model, the batch and the number of GPUs that its first line states."""

import re

import pytest

from llama_foundation.compose import CONFIGS, compose
from llama_train.config import TrainConfig
from llama_train.parallel.resolve import check_nodes, resolve_layout

READY = sorted(path.stem for path in (CONFIGS / "layout").glob("*.yaml") if path.stem != "default")
# Llama 3's table 4: GPUs, tensor, context, pipeline, data, sequence length, sequences of a data-parallel group.
PUBLISHED = {
    "405b_8192gpus": (8192, 8, 1, 16, 64, 8192, 32),
    "405b_16384gpus": (16384, 8, 1, 16, 128, 8192, 16),
    "405b_128k_16384gpus": (16384, 8, 16, 16, 8, 131072, 16),
}


def ready(name: str) -> tuple[TrainConfig, int]:
    first = (CONFIGS / "layout" / f"{name}.yaml").read_text().splitlines()[0]
    found = re.fullmatch(r"# llama-train (.*); (\d+) GPUs", first)
    assert found, first
    overrides = found[1].split()
    assert overrides[0] == f"layout={name}"
    return compose("train", TrainConfig, [*overrides, "data.shards=x"]), int(found[2])


@pytest.mark.parametrize("name", READY)
def test_a_ready_layout_fits_what_it_is_for(name: str) -> None:
    config, gpus = ready(name)
    for rank in (0, gpus - 1):
        layout = resolve_layout(config, gpus, rank)
        check_nodes(layout, 8)
        assert max(layout.members("tensor")) - min(layout.members("tensor")) < 8
    assert layout.world_size == gpus


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_405b_is_cut_as_published(name: str) -> None:
    gpus, tensor, context, pipeline, data, length, share = PUBLISHED[name]
    config, stated = ready(name)
    layout = resolve_layout(config, gpus)
    assert stated == gpus
    assert (layout.tensor, layout.context, layout.pipeline, layout.data_world) == (tensor, context, pipeline, data)
    last = ([config.data.sequence_length], [config.data.batch_size])
    for segment in config.data.segments:
        last[0].append(segment.sequence_length or last[0][-1])
        last[1].append(segment.batch_size or last[1][-1])
    assert (last[0][-1], last[1][-1] // data) == (length, share)
    layers = config.layout.layers_per_stage
    assert len(layers) == 16 and sum(layers) == 126 and layers[0] == layers[-1] == 7 and set(layers[1:-1]) == {8}


def test_sizes_from_one_gpu_to_16384_are_there() -> None:
    assert {ready(name)[1] for name in READY} == {1, 8, 64, 512, 1024, 2048, 8192, 16384}
