"""A user's configuration is made small, and stays that user's."""

import dataclasses
import math

import pytest

from llama_foundation import compose
from llama_train.config import (
    ActivationCheckpointing,
    AttentionName,
    ContextMethod,
    Float8,
    LayoutConfig,
    PipelineSchedule,
    Precision,
)
from llama_train.prove.own import own_cases
from llama_train.prove.settings import ProveConfig
from llama_train.prove.shrink import Room, room_of, shrink, shrink_layout


def composed(*overrides: str) -> ProveConfig:
    return compose.compose("prove", ProveConfig, ["optimizer.learning_rate=1e-3", *overrides])


@pytest.mark.parametrize("name", ["llama1_7b", "llama2_70b", "llama3.1_405b", "3m"])
def test_a_shrunk_model_keeps_its_ratios_and_switches(name: str) -> None:
    config = composed(f"model={name}", "engine.activation_checkpointing=full", "layout.micro_batch_size=3")
    before = dataclasses.replace(config.model)
    small, notes = shrink(config, Room())
    after = small.model
    assert after.hidden_size <= 128
    assert after.layers <= 3
    assert (after.kv_heads == after.heads) == (before.kv_heads == before.heads)
    assert math.isclose(after.ffn_size / after.hidden_size, before.ffn_size / before.hidden_size, rel_tol=0.05)
    assert (after.rope_theta, after.rope_scaling) == (before.rope_theta, before.rope_scaling)
    assert small.engine.precision is Precision.fp64
    assert small.engine.activation_checkpointing is ActivationCheckpointing.full
    assert config.model == before, "the user's configuration is left as it was"
    group = before.heads // before.kv_heads
    assert notes == ([f"{group} query heads share a KV head, proven with 4"] if group > 4 else [])


def test_what_float64_does_not_have_is_named() -> None:
    config = composed("model=tiny", "engine.precision=bf16", "engine.float8=rowwise", "engine.attention=varlen")
    small, notes = shrink(config, Room())
    assert small.engine.float8 is Float8.none
    assert small.engine.attention is AttentionName.sdpa
    assert [note.partition(":")[0] for note in notes] == ["engine.float8=rowwise", "engine.attention=varlen"]


def test_every_axis_above_one_becomes_two() -> None:
    layout = LayoutConfig(pipeline=16, data_shard=1, context=1, tensor=8)
    (small,), notes = shrink_layout(layout)
    assert (small.pipeline, small.data_replicate, small.data_shard, small.context, small.tensor) == (2, 1, 1, 1, 2)
    assert notes == []
    (small,), _ = shrink_layout(LayoutConfig())
    assert small.data_shard == 2, "-1 is open: proven with 2"


@pytest.mark.parametrize(("layout", "sets"), [({"context": 16}, 4), ({"context": 16, "data_replicate": 4}, 10)])
def test_more_than_eight_ranks_are_run_in_threes_and_named(layout: dict[str, int], sets: int) -> None:
    layouts, (note,) = shrink_layout(LayoutConfig(pipeline=16, tensor=8, stages_per_rank=4, **layout))
    assert len(layouts) == sets
    sizes = [(each.pipeline, each.data_replicate, each.data_shard, each.context, each.tensor) for each in layouts]
    assert all(math.prod(size) == 8 for size in sizes)
    assert len(set(sizes)) == sets
    assert all(each.stages_per_rank == (2 if each.pipeline == 2 else 1) for each in layouts)
    assert "not run all together" in note and "pipeline" in note and "tensor" in note and "context" in note


def test_stages_stay_as_uneven_as_they_are() -> None:
    layout = LayoutConfig(pipeline=4, data_shard=1, layers_per_stage=[7, 8, 8, 7])
    (small,), _ = shrink_layout(layout)
    assert small.layers_per_stage == [1, 2]
    config = composed("model=llama2_7b", "layout.pipeline=4", "layout.layers_per_stage=[7,9,9,7]")
    assert shrink(config, room_of([small], config))[0].model.layers == 3


def test_the_model_has_room_for_what_cuts_it() -> None:
    config = composed(
        "model=llama2_70b",
        "layout.pipeline=4",
        "layout.pipeline_schedule=zero_bubble_v",
        "layout.stages_per_rank=2",
        "layout.context=4",
        "layout.context_method=ulysses",
        "layout.tensor=2",
        "layout.data_shard=1",
    )
    layouts, _ = shrink_layout(config.layout)
    assert layouts[0].context_method is ContextMethod.ulysses
    assert layouts[0].pipeline_schedule is PipelineSchedule.zero_bubble_v
    assert room_of(layouts, config) == Room(layers=4, tensor=2, kv_heads=4)


def test_kv_heads_stay_fewer_than_tensor_ranks() -> None:
    config = composed("model=3m", "layout.tensor=6", "layout.replicate_kv_heads=true", "layout.data_shard=1")
    layouts, _ = shrink_layout(config.layout)
    small, _ = shrink(config, room_of(layouts, config))
    assert small.model.kv_heads < layouts[0].tensor
    assert small.model.heads % layouts[0].tensor == 0


def test_the_own_layout_is_run_as_it_is_and_resumed() -> None:
    layouts, _ = shrink_layout(LayoutConfig(pipeline=4, data_shard=-1, micro_batch_size=3))
    names = [case.name for case in own_cases(layouts)]
    assert names == ["1 process, 8 micro-batches", "pp2 shard2", "pp2 shard2 → 1 process"]
