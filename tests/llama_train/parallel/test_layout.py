"""Ranks, places and groups of a mesh; every expectation is counted by hand."""

import itertools
import math

import pytest

from llama_train.config import ContextMethod, LayoutConfig
from llama_train.parallel.context import own_tokens
from llama_train.parallel.layout import AXES, Layout
from tests.llama_train.parallel.groups_job import SECONDS, wait_for_rank_0
from tests.llama_train.parallel.worlds import in_world

# 2 pipeline × 1 replica × 3 shards × 1 context × 2 tensor: ranks 0 to 5 are the first pipeline stage.
TWELVE = {"data_replicate": 1, "data_shard": 3, "micro_batch_size": 1, "pipeline": 2, "tensor": 2}


def test_tensor_ranks_are_neighbours_and_pipeline_ranks_far_apart() -> None:
    layout = Layout(rank=9, **TWELVE)
    assert layout.place == {"pipeline": 1, "data_replicate": 0, "data_shard": 1, "context": 0, "tensor": 1}
    assert layout.members("tensor") == [8, 9]
    assert layout.members("data_shard") == [7, 9, 11]
    assert layout.members("pipeline") == [3, 9]
    assert layout.members("data_shard", "tensor") == [6, 7, 8, 9, 10, 11]
    assert (layout.data_rank, layout.data_world, layout.world_size) == (1, 3, 12)


def test_replicas_read_different_rows_and_ranks_of_a_sequence_the_same() -> None:
    layouts = [Layout(2, 2, rank, 1, context=2) for rank in range(8)]
    assert [layout.data_rank for layout in layouts] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [layout.counts_tokens for layout in layouts] == [True, False] * 4
    assert layouts[5].members("data_shard", "context") == [4, 5, 6, 7]
    assert layouts[5].shard_world == 4


@pytest.mark.parametrize("axes", [axes for n in range(6) for axes in itertools.combinations(AXES, n)])
def test_the_groups_of_any_axes_part_the_world(axes: tuple[str, ...]) -> None:
    sizes = dict(zip(AXES, (2, 1, 3, 2, 2), strict=True))
    layouts = [Layout(rank=rank, micro_batch_size=1, **sizes) for rank in range(24)]
    groups = {tuple(layout.members(*axes)) for layout in layouts}
    assert sorted(rank for group in groups for rank in group) == list(range(24))
    assert {len(group) for group in groups} == {math.prod(sizes[axis] for axis in axes)}
    assert all(layout.rank in layout.members(*axes) for layout in layouts)


def test_only_used_axes_are_described() -> None:
    assert Layout(rank=0, **TWELVE).describe() == "pipeline=2 data_shard=3 tensor=2"
    assert Layout(1, 1, 0, 1).describe() == "data_shard=1"


def sequence_parts(method: ContextMethod, length: int, ranks: int) -> list[list[int]]:
    config = LayoutConfig(context_method=method)
    layouts = [Layout(1, 1, rank, 1, context=ranks, config=config) for rank in range(ranks)]
    return [own_tokens(length, layout).tolist() for layout in layouts]


def test_sequences_are_cut_head_to_tail() -> None:
    assert sequence_parts(ContextMethod.all_gather, 12, 3) == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]
    assert sequence_parts(ContextMethod.ulysses, 12, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_head_to_tail_every_rank_sees_as_many_keys() -> None:
    # Query t sees t + 1 keys.
    work = [sum(token + 1 for token in part) for part in sequence_parts(ContextMethod.all_gather, 64, 4)]
    assert len(set(work)) == 1
    uneven = [sum(token + 1 for token in part) for part in sequence_parts(ContextMethod.ulysses, 64, 4)]
    assert len(set(uneven)) == 4


@pytest.mark.parametrize(
    ("sizes", "with_rank_0"),
    [
        (
            {"pipeline": 2, "tensor": 2},
            [set(), {"tensor"}, {"pipeline", "ends"}, set()],
        ),
        (
            {"data_replicate": 2, "context": 2},
            [set(), {"context", "shard"}, {"replicate", "requests"}, set()],
        ),
    ],
    ids=["pipeline and tensor", "replicas and context"],
)
def test_every_group_of_a_mesh_gives_up_when_the_run_says_so(sizes: dict, with_rank_0: list[set[str]]) -> None:
    # torch's own meshes wait 30 minutes, whatever the run's timeout is.
    ranks = in_world(wait_for_rank_0, 4, sizes, seconds=60)
    assert [set(waited) for waited in ranks] == with_rank_0
    for waited in ranks:
        assert all(0.9 * SECONDS < seconds < SECONDS + 10 for seconds in waited.values())
