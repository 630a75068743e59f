"""Statistics of every parameter and layer, against a plain float64 computation on a whole model."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from llama_train.config import TrainConfig
from llama_train.engine.engine import Chunk
from llama_train.model.initialize import initialize
from llama_train.model.llama import Llama, rotation
from llama_train.observe.statistics import LayerStatistics
from tests.llama_train.observe.statistics_job import make_batch, make_config

JOB = Path(__file__).with_name("statistics_job.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def single_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run_job(tmp_path: Path, size: int, *overrides: str) -> list[dict]:
    """Run one step on `size` processes; return what each of them took."""
    environment = os.environ | {"WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [str(size), str(tmp_path / "meeting")]
    jobs = [
        subprocess.Popen(
            [sys.executable, str(JOB), str(rank), *arguments, str(tmp_path / f"{rank}.json"), *overrides],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(size)
    ]
    try:
        assert [job.wait(90) for job in jobs] == [0] * size
    finally:
        for job in jobs:
            job.kill()
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]


def plain(config: TrainConfig) -> tuple[dict[str, dict[str, float]], list[dict[str, float]]]:
    """The same numbers from one whole model in float64, one layer's output after the other."""
    model = Llama(config.model).double()
    initialize(model, config.model, config.seed)
    tokens, labels = make_batch()
    outputs = []
    hidden = model.model.embed_tokens(tokens)
    cos, sin = rotation(torch.arange(tokens.shape[1])[None], config.model, torch.float64)
    for block in model.blocks():
        hidden = block(hidden, cos, sin, None)
        outputs.append(hidden.detach())
    logits = F.linear(
        model.model.norm(hidden), model.model.embed_tokens.weight if model.lm_head is None else model.lm_head.weight
    )
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    parameters = {
        name: {
            "weights_rms": parameter.detach().pow(2).mean().sqrt().item(),
            "weights_max": parameter.detach().abs().max().item(),
            "gradients_rms": parameter.grad.pow(2).mean().sqrt().item(),
            "gradients_max": parameter.grad.abs().max().item(),
            "gradients_not_finite": 0.0,
        }
        for name, parameter in model.named_parameters()
    }
    layers = [
        {"outputs_rms": o.pow(2).mean().sqrt().item(), "outputs_max": o.abs().max().item(), "outputs_not_finite": 0.0}
        for o in outputs
    ]
    return parameters, layers


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (1, ("engine.activation_checkpointing=full",)),
        (2, ("engine.activation_checkpointing=full",)),
        (2, ("layout.data_replicate=2",)),
    ],
    ids=["1 recomputed", "2 shards recomputed", "2 replicas"],
)
def test_statistics_are_those_of_a_whole_model_in_float64(
    tmp_path: Path, size: int, overrides: tuple[str, ...]
) -> None:
    overrides = ("engine.precision=fp64", *overrides)
    taken = run_job(tmp_path, size, *overrides)
    parameters, layers = plain(make_config(size, *overrides))
    assert all(numbers == taken[0] for numbers in taken), "the same on every rank"
    assert taken[0]["parameters"].keys() == parameters.keys()
    for name, expected in parameters.items():
        assert taken[0]["parameters"][name] == pytest.approx(expected, rel=1e-10, abs=1e-14), name
    assert len(taken[0]["layers"]) == len(layers)
    for layer, expected in enumerate(layers):
        assert taken[0]["layers"][layer] == pytest.approx(expected, rel=1e-12), layer
    assert taken[0]["unseen"] == 0, "take begins again"


def test_values_that_are_not_finite_are_counted_and_spoil_only_their_own_numbers(single_process_group: None) -> None:
    model = make_config(1).model
    statistics = LayerStatistics(model, torch.device("cpu"), lambda: ())
    gradient = torch.ones(model.hidden_size)
    gradient[0], gradient[1] = math.nan, -math.inf
    name = "model.norm.weight"
    statistics.look_at_gradients([Chunk(f"gradients/{name}", gradient.shape, (0,), gradient)])
    statistics.look_at_output(0, torch.full((2, 3, 4), 2.0))
    statistics.look_at_output(0, torch.full((1, 3, 4), -5.0))
    parameters, layers = statistics.take()
    assert parameters[name]["gradients_not_finite"] == 2 / model.hidden_size
    assert parameters[name]["gradients_max"] == math.inf
    assert math.isnan(parameters[name]["gradients_rms"])
    assert parameters["lm_head.weight"]["gradients_not_finite"] == 0
    assert layers[0] == {"outputs_rms": math.sqrt((4 * 2 + 25) / 3), "outputs_max": 5.0, "outputs_not_finite": 0.0}


def test_a_shard_longer_than_a_piece_is_summed_whole(
    single_process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_train.observe.statistics._PIECE", 7)
    statistics = LayerStatistics(make_config(1).model, torch.device("cpu"), lambda: ())
    values = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    statistics.look_at_output(1, values)
    _, layers = statistics.take()
    assert layers[1]["outputs_rms"] == pytest.approx(values.double().pow(2).mean().sqrt().item(), rel=1e-14)
    assert layers[1]["outputs_max"] == values.abs().max().item()
