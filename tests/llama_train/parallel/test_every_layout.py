"""What one process computes is computed in every layout, by everything that a run does with its model."""

import math
from typing import Any

import numpy as np
import pytest

from llama_train.config import ActivationCheckpointing, ContextMethod, PipelineSchedule, ReduceGradients, Reshard
from llama_train.model.size import parameter_count
from tests.llama_train.parallel.engine_job import Case, Seen, run, tiny
from tests.llama_train.parallel.worlds import in_world

FULL = {"activation_checkpointing": ActivationCheckpointing.full}
SELECTIVE = {"activation_checkpointing": ActivationCheckpointing.selective}
EVERY_N = {"activation_checkpointing": ActivationCheckpointing.every_n}
KEPT = {"reshard_after_forward": Reshard.never, "reduce_gradients": ReduceGradients.once}

RING = {"context": 2, "context_method": ContextMethod.ring}

REFERENCE = {
    (tied, documents): Case({"micro_batch_size": 8}, {"loss_chunk": 0}, tied=tied, documents=documents)
    for tied, documents in ((False, True), (True, True), (False, False))
}
CASES = {
    "tensor 4, KV heads replicated": Case({"tensor": 4, "replicate_kv_heads": True, "micro_batch_size": 2}),
    "tensor 2, context 2": Case({"tensor": 2, "context": 2}, FULL),
    "tensor 2, context 2, no pieces of the loss": Case(
        {"tensor": 2, "context": 2}, {"loss_chunk": 0, **KEPT}, tied=True
    ),
    "Ulysses 2, shard 2": Case({"context": 2, "context_method": ContextMethod.ulysses}, SELECTIVE),
    "ring 2, tensor 2": Case(RING | {"tensor": 2}, SELECTIVE, documents=False),
    "pipeline 2, ring 2, zero bubble V": Case(
        RING | {"pipeline": 2, "pipeline_schedule": PipelineSchedule.zero_bubble_v, "stages_per_rank": 2},
        FULL,
        documents=False,
    ),
    "replicate 2, tensor 2, in host memory": Case({"data_replicate": 2, "tensor": 2}, {"offload": True}),
    "shard 2, tensor 2, reduced once": Case({"tensor": 2, "micro_batch_size": 2}, {**EVERY_N, **KEPT}, tied=True),
    "pipeline 4, uneven": Case({"pipeline": 4, "layers_per_stage": [1, 1, 2, 1]}, SELECTIVE, tied=True),
    "pipeline 2, tensor 2, GPipe": Case(
        {"pipeline": 2, "tensor": 2, "pipeline_schedule": PipelineSchedule.gpipe}, EVERY_N, tied=True
    ),
    "pipeline 2, context 2, interleaved": Case(
        {"pipeline": 2, "context": 2, "pipeline_schedule": PipelineSchedule.interleaved, "stages_per_rank": 2}, FULL
    ),
    "pipeline 2, shard 2, interleaved zero bubble": Case(
        {"pipeline": 2, "pipeline_schedule": PipelineSchedule.interleaved_zero_bubble, "stages_per_rank": 2}, FULL
    ),
    "pipeline 2, shard 2, zero bubble V": Case(
        {"pipeline": 2, "pipeline_schedule": PipelineSchedule.zero_bubble_v, "stages_per_rank": 2},
        {**FULL, "loss_chunk": 0},
        tied=True,
    ),
    "pipeline 2, tensor 2, dual pipe V": Case(
        {"pipeline": 2, "tensor": 2, "pipeline_schedule": PipelineSchedule.dual_pipe_v, "stages_per_rank": 2}, EVERY_N
    ),
}


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Seen]]:
    ranks = in_world(run, 4, 4, CASES)
    return {name: [rank[name] for rank in ranks] for name in CASES}


@pytest.fixture(scope="module")
def one() -> dict[tuple[bool, bool], Seen]:
    (alone,) = in_world(run, 1, 1, REFERENCE)
    return alone


def of_one(name: str, one: dict[tuple[bool, bool], Seen]) -> Seen:
    return one[CASES[name].tied, CASES[name].documents]


def whole(ranks: list[list[tuple]]) -> dict[str, np.ndarray]:
    """Lay all rectangles out; every element must have one owner, and copies must equal it."""
    values: dict[str, np.ndarray] = {}
    owners: dict[str, np.ndarray] = {}
    for owned in (True, False):
        for rectangles in ranks:
            for name, shape, offsets, tensor, owner in rectangles:
                if owner is not owned:
                    continue
                place = tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))
                table = values.setdefault(name, np.full(shape, np.nan))
                if owned:
                    table[place] = tensor
                    owners.setdefault(name, np.zeros(shape, int))[place] += 1
                else:
                    np.testing.assert_array_equal(table[place], tensor, err_msg=f"copies of {name} differ")
    assert all((count == 1).all() for count in owners.values())
    return values


def assert_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], relative: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        difference = np.abs(ours[name] - expected).max() / max(np.abs(expected).max(), 1e-300)
        assert difference <= relative, (name, difference)


@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_weights_are_those_of_one_process(name: str, seen: dict, one: dict) -> None:
    ranks, reference = seen[name], of_one(name, one)
    for rank in ranks:
        assert rank.losses == pytest.approx(reference.losses, abs=1e-12)
        assert rank.norms == pytest.approx(reference.norms, rel=1e-10)
    assert_close(whole([r.gradients for r in ranks]), whole([reference.gradients]), 1e-10)
    assert_close(whole([r.weights for r in ranks]), whole([reference.weights]), 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_held_out_loss_is_that_of_one_process(name: str, seen: dict, one: dict) -> None:
    loss, tokens = of_one(name, one).evaluated
    for rank in seen[name]:
        assert rank.evaluated == (pytest.approx(loss, rel=1e-9), tokens)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_gives_the_logits_answers_and_texts_of_one_process(name: str, seen: dict, one: dict) -> None:
    reference = of_one(name, one)
    for rank in seen[name]:
        np.testing.assert_allclose(rank.logits, reference.logits, rtol=0, atol=1e-8)
        assert rank.generated == reference.generated
        assert [greedy for _, greedy in rank.likelihoods] == [greedy for _, greedy in reference.likelihoods]
        expected = [value for value, _ in reference.likelihoods]
        assert [value for value, _ in rank.likelihoods] == pytest.approx(expected, abs=1e-8)
    assert len({tuple(ids) for ids in reference.generated}) > 1


@pytest.mark.parametrize("name", CASES)
def test_statistics_of_parameters_and_layers_are_those_of_one_process(name: str, seen: dict, one: dict) -> None:
    parameters, layers = of_one(name, one).statistics
    for rank in seen[name]:
        ours, by_layer = rank.statistics
        assert ours.keys() == parameters.keys()
        for parameter, numbers in parameters.items():
            assert ours[parameter] == pytest.approx(numbers, rel=1e-7), parameter
        assert len(by_layer) == len(layers)
        for found, expected in zip(by_layer, layers, strict=True):
            assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_rank_makes_the_initial_values_of_its_slice_and_no_others(name: str, seen: dict) -> None:
    config = tiny(CASES[name])
    total = parameter_count(config.model)
    for rank in seen[name]:
        assert rank.made == rank.held
    shards = 4 // CASES[name].layout.get("data_replicate", 1)
    assert max(rank.made for rank in seen[name]) < 1.6 * total / shards  # stages of 1 and 2 layers, norms, small KV


@pytest.mark.parametrize("name", CASES)
def test_a_bubble_is_measured_where_there_is_a_pipeline(name: str, seen: dict) -> None:
    bubbles: list[Any] = [rank.bubbles for rank in seen[name]]
    assert all(each == bubbles[0] for each in bubbles)
    if "pipeline" in CASES[name].layout:
        assert all(0 < bubble < 1 and math.isfinite(bubble) for bubble in bubbles[0])
    else:
        assert bubbles[0] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [{"tensor": 2}, {"pipeline": 2}, {"context": 2}, {"context": 2, "context_method": ContextMethod.ulysses}, RING],
    ids=str,
)
def test_compiled_blocks_compute_the_same(layout: dict[str, Any], one: dict) -> None:
    documents = layout is not RING
    compiled = Case({**layout, "micro_batch_size": 2}, {"compile": True}, documents=documents)
    ranks = [rank["compiled"] for rank in in_world(run, 2, 2, {"compiled": compiled})]
    reference = one[False, documents]
    assert ranks[0].losses == pytest.approx(reference.losses, abs=1e-12)
    assert_close(whole([r.gradients for r in ranks]), whole([reference.gradients]), 1e-10)
