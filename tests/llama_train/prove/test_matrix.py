"""The matrices hold what they promise, and every case of them can be run."""

import dataclasses
import itertools

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import ContextMethod, PipelineSchedule
from llama_train.parallel.resolve import resolve_layout
from llama_train.prove.__main__ import choose
from llama_train.prove.case import AXES, Case
from llama_train.prove.settings import ProveConfig
from llama_train.prove.shrink import STEPS

GIVEN = ["optimizer.learning_rate=1e-3"]


def cases(*overrides: str) -> list[Case]:
    return choose(compose.compose("prove", ProveConfig, [*GIVEN, *overrides]))[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=tiny", "prove.matrix=full"],
        ["model=llama1_7b", "prove.matrix=full"],
        ["model=llama3.1_405b", "prove.matrix=full"],
        ["model=tiny", "prove.matrix=reduced", "model.tied_embeddings=true", "data.document_masks=false"],
        ["model=tiny", "prove.matrix=full", "engine.reduce_gradients=every_micro_batch", "model.kv_heads=1"],
        ["model=3m", "layout.pipeline=4", "layout.stages_per_rank=3", "layout.pipeline_schedule=interleaved"],
        ["model=3m", "layout.pipeline=2", "layout.layers_per_stage=[1,3]", "layout.context=4", "layout.tensor=2"],
        ["model=llama3_70b", "layout.tensor=16", "layout.replicate_kv_heads=true"],
        [
            *("model=3m", "layout.data_replicate=2", "layout.data_shard=2", "layout.pipeline=2"),
            *("layout.pipeline_schedule=zero_bubble_v", "layout.stages_per_rank=2"),
        ],
        ["model=3m", "layout.context=2", "layout.context_method=ulysses", "layout.tensor=2", "layout.data_shard=2"],
    ],
)
def test_every_case_can_be_run(overrides: list[str]) -> None:
    small, found, _ = choose(compose.compose("prove", ProveConfig, [*GIVEN, *overrides]))
    for case in found:
        for part in case.parts:
            config = dataclasses.replace(
                small,
                model=dataclasses.replace(small.model, **case.variant.model),
                data=dataclasses.replace(small.data, **case.variant.data),
                layout=dataclasses.replace(small.layout, **part.layout),
                engine=dataclasses.replace(small.engine, **part.engine),
            )
            config.check()
            resolve_layout(config, part.world)
        assert case.world <= 8
        assert case.parts[-1].last == STEPS


def test_the_full_matrix_has_every_axis_alone_every_pair_and_three_together() -> None:
    found = cases("model=tiny", "prove.matrix=full")
    used = [frozenset(axis for axis in AXES if case.uses(axis)) for case in found]
    assert len(found) >= 40
    for count in (1, 2, 3):
        assert {frozenset(axes) for axes in itertools.combinations(AXES, count)} <= set(used)
    layouts = [part.layout for case in found for part in case.parts]
    assert {layout.get("pipeline_schedule", PipelineSchedule.one_f_one_b) for layout in layouts} == set(
        PipelineSchedule
    )
    assert {layout.get("context_method", ContextMethod.all_gather) for layout in layouts} == set(ContextMethod)
    resumed = [case for case in found if len(case.parts) > 1]
    assert {case.parts[0].world for case in resumed} == {8}
    assert {(case.parts[1].world, *case.parts[1].layout) for case in resumed} == {
        (3, "data_shard", "micro_batch_size"),
        (4, "data_shard", "tensor", "micro_batch_size"),
        (4, "data_shard", "pipeline", "micro_batch_size"),
        (1, "data_shard", "micro_batch_size"),
    }


def test_names_are_unique_and_fit_the_table() -> None:
    names = [case.name for case in cases("model=tiny", "prove.matrix=full")]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 38


def test_the_reduced_matrix_is_part_of_the_full_one_or_harder() -> None:
    full = {case.name for case in cases("model=tiny", "prove.matrix=full")}
    reduced = cases("model=tiny", "prove.matrix=reduced")
    assert {case.name for case in reduced} - full == {"pp2 tp2, stages 1, 3, tied", "pp2 dual_pipe_v, tied"}
    assert all(any(case.uses(axis) for case in reduced) for axis in AXES)


def test_with_fewer_steps_resumptions_are_left_out_and_named() -> None:
    config = compose.compose("prove", ProveConfig, [*GIVEN, "model=tiny", "prove.precision=bf16"])
    _, found, notes = choose(config)
    assert {case.parts[-1].last for case in found} == {5}
    assert notes == ["not run, for only 5 steps are compared: shard2 → 1 process"]


def test_a_layout_that_does_not_fit_is_refused_before_anything_runs() -> None:
    asked = [*GIVEN, "model=tiny", "layout.context=2", "layout.context_method=ring", "data.document_masks=true"]
    with pytest.raises(ConfigError, match=r"context_method=ring: .* no document masks"):
        choose(compose.compose("prove", ProveConfig, asked))


def test_five_axes_run_together_where_so_many_ranks_may() -> None:
    axes = [f"layout.{axis}=2" for axis in AXES]
    for ranks, worlds in ((8, {1, 8}), (16, {1, 16}), (32, {1, 32})):
        assert {case.world for case in cases("model=tiny", *axes, f"prove.ranks={ranks}")} == worlds
