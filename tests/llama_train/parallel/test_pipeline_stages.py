"""Which stage holds what; the numbers are counted by hand."""

import pytest
import torch

from llama_foundation.compose import compose
from llama_train.config import LayoutConfig, ModelConfig, PipelineSchedule, TrainConfig
from llama_train.model.names import canonical_parameters, parameter_shapes
from llama_train.parallel.layout import Layout
from llama_train.parallel.stages import layers_per_stage, make_stage, stage_layers, stage_numbers, stage_ranks


def model(name: str) -> ModelConfig:
    needed = ["data.shards=x", "data.sequence_length=64", "data.batch_size=8", "steps=1", "optimizer.learning_rate=1"]
    return compose("train", TrainConfig, [f"model={name}", *needed]).model


def test_the_head_of_llama_2_7b_weighs_less_than_a_layer() -> None:
    # A layer: 4 · 4096² + 3 · 4096 · 11008 + 2 · 4096 = 202,383,360; the head: 32000 · 4096 = 131,072,000, 0.65 of it.
    # 32 layers and 0.65 over 4 stages: 8.16 each, so 8 whole layers everywhere.
    assert layers_per_stage(model("llama2_7b"), 4, None) == [8, 8, 8, 8]
    # Over 6 stages 32.65 / 6 = 5.44: two stages take a layer more, and not the last, which has the head.
    assert layers_per_stage(model("llama2_7b"), 6, None) == [5, 5, 5, 6, 6, 5]


def test_the_405b_balances_to_fewer_layers_at_the_end() -> None:
    # A layer: 2 · 16384² + 2 · 16384 · 1024 + 3 · 16384 · 53248 + 2 · 16384 = 3,187,703,808; the head 2,101,346,304,
    # 0.66 of it. 126.66 / 16 = 7.9: 14 stages of 8 layers, the last of 7 (and the head), and one more of 7: the first.
    assert layers_per_stage(model("llama3.1_405b"), 16, None) == [7, *[8] * 14, 7]


def test_chosen_layers_are_taken() -> None:
    assert layers_per_stage(model("tiny"), 2, [2, 0]) == [2, 0]
    assert [list(stage_layers([2, 1, 3], stage)) for stage in range(3)] == [[0, 1], [2], [3, 4, 5]]


def laid_out(schedule: PipelineSchedule, ranks: int, stages: int, rank: int = 0) -> Layout:
    config = LayoutConfig(pipeline_schedule=schedule, stages_per_rank=stages)
    return Layout(1, 1, rank, 1, pipeline=ranks, config=config)


def test_stages_go_round_or_there_and_back() -> None:
    assert stage_ranks(laid_out(PipelineSchedule.one_f_one_b, 3, 1)) == [0, 1, 2]
    assert stage_ranks(laid_out(PipelineSchedule.interleaved, 3, 2)) == [0, 1, 2, 0, 1, 2]
    assert stage_ranks(laid_out(PipelineSchedule.dual_pipe_v, 3, 2)) == [0, 1, 2, 2, 1, 0]
    assert stage_numbers(laid_out(PipelineSchedule.zero_bubble_v, 3, 2, rank=1)) == [1, 4]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("schedule", [PipelineSchedule.interleaved, PipelineSchedule.zero_bubble_v])
def test_the_stages_together_hold_every_parameter_once(tied: bool, schedule: PipelineSchedule) -> None:
    config = ModelConfig("t", 101, 32, 7, 4, 2, 48, 64, tied_embeddings=tied)
    found: list[str] = []
    with torch.device("meta"):
        for stage in range(4):
            part = make_stage(config, laid_out(schedule, 2, 2), stage)
            found += [name for name, _ in canonical_parameters(part)]
    extra = ["lm_head.weight"] if tied else []  # the copy of the embedding at the other end
    assert sorted(found) == sorted([*parameter_shapes(config), *extra])
