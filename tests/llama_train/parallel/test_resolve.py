"""A layout that does not fit is refused before anything starts: the field, its value, what is allowed."""

import dataclasses
from typing import Any

import pytest

from llama_foundation.errors import ConfigError
from llama_train.config import (
    ActivationCheckpointing,
    AttentionName,
    ContextMethod,
    DataConfig,
    EngineConfig,
    Float8,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineSchedule,
    Precision,
    ReduceGradients,
    Reshard,
    Segment,
    TrainConfig,
)
from llama_train.parallel.layout import Layout
from llama_train.parallel.resolve import check_nodes, resolve_layout

MODEL = ModelConfig("m", 101, 64, layers=6, heads=8, kv_heads=4, ffn_size=96, context=64)


def config(layout: dict[str, Any], engine: dict[str, Any] | None = None, **data: Any) -> TrainConfig:
    model = dataclasses.replace(MODEL, **data.pop("model", {}))
    return TrainConfig(
        steps=1,
        model=model,
        data=DataConfig(shards="x", **{"sequence_length": 48, "batch_size": 16, **data}),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        layout=LayoutConfig(**layout),
        engine=EngineConfig(**(engine or {})),
    )


def test_what_is_left_open_takes_the_processes_that_are_left() -> None:
    layout = resolve_layout(config({"data_replicate": 2, "tensor": 2}), world_size=16, rank=11)
    assert (layout.data_replicate, layout.data_shard, layout.data_world, layout.data_rank) == (2, 4, 8, 5)
    assert layout.world_size == 16


@pytest.mark.parametrize(
    ("layout", "world", "said"),
    [
        ({"data_shard": 3}, 4, r"data_shard=3 .* 4 processes of this run; start a multiple of 3"),
        ({"data_replicate": 3}, 4, r"data_replicate=3 .* start a multiple of 3"),
        ({"tensor": 4, "pipeline": 2}, 4, r"pipeline=2 .* tensor=4 .* 4 processes .* multiple of 8"),
        ({"tensor": 8, "data_shard": 1}, 4, r"tensor=8 does not give the 4 processes"),
    ],
)
def test_sizes_that_do_not_give_the_world_size_are_refused(layout: dict, world: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_layout(config(layout), world)


@pytest.mark.parametrize(
    ("batch_size", "micro", "advice"),
    [(6, 1, "batch_size=4 or 8"), (8, 3, r"micro_batch_size=1, 2$"), (2, 1, "batch_size=4$")],
)
def test_a_batch_that_does_not_divide_gets_the_choices_that_do(batch_size: int, micro: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.batch_size={batch_size} .*{advice}"):
        resolve_layout(config({"micro_batch_size": micro}, batch_size=batch_size), world_size=4)


def test_a_later_segment_must_divide_too() -> None:
    with pytest.raises(ConfigError, match=r"data\.segments\[0\]\.batch_size=6"):
        resolve_layout(config({}, segments=[Segment(from_step=10, batch_size=6)]), world_size=4)
    with pytest.raises(ConfigError, match=r"data\.segments\[0\]\.sequence_length=42 .* use a multiple of 4"):
        resolve_layout(config({"context": 2}, segments=[Segment(from_step=10, sequence_length=42)]), world_size=2)


@pytest.mark.parametrize(
    ("tensor", "model", "layout", "said"),
    [
        (3, {}, {}, r"layout\.tensor=3 does not divide model\.heads=8; use 1, 2, 4 or 8"),
        (8, {"ffn_size": 100}, {}, r"layout\.tensor=8 does not divide model\.ffn_size=100"),
        (4, {"heads": 12, "kv_heads": 6, "hidden_size": 96}, {}, r"model\.kv_heads=6; use 1, 2, 3 or 6"),
        (8, {"heads": 8, "kv_heads": 1}, {}, r"layout\.tensor=8 is more than model\.kv_heads=1.*replicate_kv_heads"),
        (4, {"heads": 12, "kv_heads": 3, "hidden_size": 96}, {}, r"no multiple of model\.kv_heads=3; use 1 or 3"),
        (8, {}, {}, r"tensor=8 is more than model\.kv_heads=4: .* set layout\.replicate_kv_heads=true"),
    ],
)
def test_tensor_ranks_must_divide_what_they_cut(tensor: int, model: dict, layout: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_layout(config({"tensor": tensor, **layout}, model=model), tensor)


def test_kv_heads_may_be_replicated_by_name() -> None:
    assert resolve_layout(config({"tensor": 8, "replicate_kv_heads": True}), 8).tensor == 8


@pytest.mark.parametrize(
    ("layout", "engine", "length", "said"),
    [
        ({"context": 4}, {}, 52, r"data\.sequence_length=52 .* layout\.context=4 \(in 8 pieces\).* multiple of 8"),
        ({"context": 2, "tensor": 4}, {}, 20, r"sequence_length=20 .* layout\.tensor=4; use a multiple of 8"),
        ({"context": 8, "context_method": ContextMethod.ulysses}, {}, 48, r"4 KV heads; use layout\.context=1, 2 or 4"),
        (
            {"context": 2},
            {"attention": AttentionName.flex},
            48,
            r"attention=flex .* use engine\.attention=sdpa",
        ),
        ({"context": 2}, {"attention": AttentionName.varlen}, 48, r"engine\.attention=varlen has no form"),
        (
            {"context": 2, "context_method": ContextMethod.ring},
            {},
            48,
            r"context_method=ring: .* no document masks; use .*all_gather, or data\.document_masks=false",
        ),
    ],
)
def test_context_ranks_must_divide_sequences_and_heads(layout: dict, engine: dict, length: int, said: str) -> None:
    world = layout["context"] * layout.get("tensor", 1)
    with pytest.raises(ConfigError, match=said):
        resolve_layout(config(layout, engine, sequence_length=length), world)


V = {"pipeline": 2, "pipeline_schedule": PipelineSchedule.zero_bubble_v, "stages_per_rank": 2}


@pytest.mark.parametrize(
    ("layout", "engine", "world", "said"),
    [
        ({"stages_per_rank": 2}, {}, 1, r"layout\.pipeline=1: layout\.stages_per_rank"),
        ({"layers_per_stage": [6]}, {}, 1, r"layout\.pipeline=1: .*layers_per_stage"),
        ({"pipeline": 2, "stages_per_rank": 2}, {}, 2, r"one_f_one_b needs layout\.stages_per_rank=1, not 2"),
        ({**V, "stages_per_rank": 3}, {}, 2, r"zero_bubble_v needs layout\.stages_per_rank=2, not 3"),
        ({"pipeline": 8}, {}, 8, r"8 stages of model\.layers=6; use at most 6 stages"),
        ({"pipeline": 2, "layers_per_stage": [4, 3]}, {}, 2, r"2 numbers of together 7 layers; it needs 2, .*layers=6"),
        ({"pipeline": 2, "layers_per_stage": [2, 2, 2]}, {}, 2, r"\[2, 2, 2\] has 3 numbers"),
        ({"pipeline": 4, "micro_batch_size": 8}, {}, 4, r"batch_size=16 gives every pipeline 2 .* needs at least 4"),
        (
            V,
            {"reshard_after_forward": Reshard.always},
            4,
            r"reshard_after_forward=always: .*=never or auto",
        ),
        (V, {"reduce_gradients": ReduceGradients.every_micro_batch}, 4, r"reduce_gradients=every_micro_batch: .*once"),
        (
            V,
            {"activation_checkpointing": ActivationCheckpointing.selective},
            2,
            r"selective gives .* use full",
        ),
        (V, {"compile": True}, 2, r"engine\.compile=true: .*zero_bubble_v.* or one_f_one_b or interleaved"),
    ],
)
def test_pipelines_must_fit_layers_batches_and_schedules(layout: dict, engine: dict, world: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_layout(config(layout, engine), world)


F8 = {"float8": Float8.rowwise, "precision": Precision.bf16}


@pytest.mark.parametrize(
    ("layout", "engine", "world", "said"),
    [
        ({"tensor": 2}, F8, 2, r"model\.kv_heads over layout\.tensor=2 gives matrices of 16|ok"),
        ({"tensor": 4}, F8, 4, r"engine\.float8=rowwise: model\.ffn_size over layout\.tensor=4 gives .* of 24 columns"),
        ({"tensor": 8, "replicate_kv_heads": True}, F8, 8, r"use layout\.tensor=4 or less"),
        ({"context": 6, "context_method": ContextMethod.all_gather}, F8, 6, r"matrices of 8 rows"),
        ({}, {"async_tensor_parallel": True}, 1, r"async_tensor_parallel=true .* layout\.tensor=1"),
        ({"tensor": 2}, {"async_tensor_parallel": True}, 2, r"engine\.compile=false; set engine\.compile=true"),
    ],
)
def test_switches_that_do_not_go_with_a_layout_are_refused(layout: dict, engine: dict, world: int, said: str) -> None:
    if said.endswith("ok"):
        assert resolve_layout(config(layout, engine), world).tensor == 2
        return
    with pytest.raises(ConfigError, match=said):
        resolve_layout(config(layout, engine), world)


def test_tensor_groups_stay_inside_a_node() -> None:
    layout = Layout(1, 4, 0, 1, tensor=4)
    for processes in (None, 4, 8):
        check_nodes(layout, processes)
    with pytest.raises(ConfigError, match=r"layout\.tensor=4 does not divide the 6 processes of a node.*use 1, 2"):
        check_nodes(layout, 6)
    with pytest.raises(ConfigError, match=r"2 processes of a node.*cluster\.processes_per_node"):
        check_nodes(layout, 2)
