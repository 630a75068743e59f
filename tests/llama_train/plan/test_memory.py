"""The memory formula against ranks that are really built: bytes of states exactly, the peak within a tenth."""

from dataclasses import replace

import pytest
import torch

from llama_foundation.compose import compose
from llama_train.config import ActivationCheckpointing, LayoutConfig, PipelineSchedule, TrainConfig
from llama_train.model.llama import Block, rotation
from llama_train.parallel.bubble import _order, ideal_bubble
from llama_train.parallel.layout import Layout
from llama_train.parallel.resolve import resolve_layout
from llama_train.plan.activations import kept_by_layer
from llama_train.plan.exact import Exact, LiveBytes, measure
from llama_train.plan.memory import Memory, micro_batches_in_flight, rank_memory
from llama_train.plan.speed import bubble_share

LLAMA2_7B = "experiment=llama2_7b"
LLAMA2_70B = "experiment=llama2_70b layout.tensor=8"
CASES = {
    "sharded": (8, 0, f"{LLAMA2_7B} model.layers=4"),
    "recomputed": (8, 0, f"{LLAMA2_7B} model.layers=4 engine.activation_checkpointing=full"),
    "selective": (8, 0, f"{LLAMA2_7B} model.layers=4 engine.activation_checkpointing=selective"),
    "tensor": (64, 0, f"{LLAMA2_70B} model.layers=4 engine.activation_checkpointing=full layout.micro_batch_size=2"),
    "first of a pipeline": (64, 0, f"{LLAMA2_70B} model.layers=8 layout.pipeline=2 layout.data_shard=4"),
    "masked": (64, 0, "experiment=llama3_8b model.layers=2 data.sequence_length=4096 data.batch_size=128"),
    "float32": (8, 0, f"{LLAMA2_7B} model.layers=3 engine.precision=fp32"),
}


def both(name: str) -> tuple[Memory, Exact]:
    world, rank, overrides = CASES[name]
    config = compose("train", TrainConfig, ["engine.precision=bf16", *overrides.split(), "data.shards=x"])
    layout = resolve_layout(config, world, rank)
    micro_batches = config.data.batch_size // layout.data_world // layout.micro_batch_size
    formula = rank_memory(config, layout, config.data.sequence_length, micro_batches, layout.place["pipeline"])
    return formula, measure(config, world, rank, int(formula.in_flight), micro_batches)


@pytest.mark.parametrize("name", CASES)
def test_the_formula_agrees_with_a_rank_that_is_built(name: str) -> None:
    formula, built = both(name)
    assert (formula.of("weights"), formula.of("optimizer")) == (built.weights, built.optimizer)
    if formula.of("gradients"):
        assert formula.of("gradients") == built.gradients
    activations = formula.allocated - formula.of("weights", "gradients", "optimizer")
    counted = built.peak - built.weights - built.optimizer - formula.of("gradients")
    assert activations == pytest.approx(counted, rel=0.10)


def test_what_a_layer_keeps_is_exact_to_the_byte() -> None:
    kept = {}
    for layers in (2, 4):
        overrides = [LLAMA2_7B, f"model.layers={layers}", "engine.precision=bf16", "data.shards=x"]
        config = compose("train", TrainConfig, overrides)
        kept[layers] = measure(config, 8, 0, 1, 1).kept
    formula = sum(size for _, size, _ in kept_by_layer(config, resolve_layout(config, 8), 4096, 4096))
    # A layer of Llama 2 7B, counted by hand: 2 norms of 6·D + 4, 2 inputs of 2·D, 4 of 2·D and 4·H, 4 of 2·F a token.
    by_hand = 4096 * (2 * (6 * 4096 + 4) + 2 * 2 * 4096 + 4 * 2 * 4096 + 4 * 32 + 4 * 2 * 11008)
    assert (kept[4] - kept[2]) // 2 == formula == by_hand


def test_what_a_compiled_layer_keeps_is_what_the_partitioner_keeps() -> None:
    overrides = ["model=tiny", "model.layers=1", "model.hidden_size=512", "model.heads=8", "model.kv_heads=2"]
    overrides += ["model.ffn_size=1792", "data.sequence_length=128", "data.batch_size=1", "data.document_masks=false"]
    more = ["steps=1", "optimizer.learning_rate=1e-3", "engine.precision=bf16", "engine.compile=true", "data.shards=x"]
    config = compose("train", TrainConfig, [*overrides, *more])
    block = Block(config.model).to(torch.bfloat16)
    cos, sin = rotation(torch.arange(128)[None], config.model, torch.float32)
    shared = {tensor.untyped_storage()._cdata for tensor in (*block.parameters(), cos, sin)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in shared:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    compiled = torch.compile(block, backend="aot_eager_decomp_partition")  # the partition of inductor, run eagerly
    hidden = torch.randn(1, 128, 512, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compiled(hidden, cos, sin, None)
    assert result.requires_grad
    formula = kept_by_layer(config, resolve_layout(config, 1), 128, 128)
    assert sum(kept.values()) == sum(size for _, size, _ in formula)


def test_live_bytes_are_those_of_the_tensors_that_are_alive() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first[10:]
        second = first + 1
        assert live.now() == 8000
        del second
        assert live.now() == 4000
        del first
        assert live.now() == 4000, "a view keeps its storage"
        del view
        assert live.now() == 0
    assert live.peak == 8000


def make_layout(schedule: PipelineSchedule, ranks: int, stages: int) -> Layout:
    config = LayoutConfig(pipeline=ranks, pipeline_schedule=schedule, stages_per_rank=stages)
    return Layout(data_replicate=1, data_shard=1, rank=0, micro_batch_size=1, pipeline=ranks, config=config)


SCHEDULES = [
    (PipelineSchedule.gpipe, 1),
    (PipelineSchedule.one_f_one_b, 1),
    (PipelineSchedule.interleaved, 2),
    (PipelineSchedule.interleaved_zero_bubble, 2),
    (PipelineSchedule.zero_bubble_v, 2),
    (PipelineSchedule.dual_pipe_v, 2),
]


@pytest.mark.parametrize(("schedule", "stages"), SCHEDULES, ids=lambda value: getattr(value, "name", str(value)))
def test_in_flight_and_bubble_agree_with_the_schedule_played_through(schedule: PipelineSchedule, stages: int) -> None:
    layout, micro_batches = make_layout(schedule, 4, stages), 16
    for rank, actions in _order(layout, micro_batches, 4 * stages).items():
        alive = most = 0
        for kind, _, _ in actions:
            alive += {"F": 1, "B": -1, "W": -1}.get(kind, 0)  # what gradients of weights need stays until they are made
            most = max(most, alive)
        assert micro_batches_in_flight(layout, micro_batches, rank) >= most / stages - 1.01, rank
        assert micro_batches_in_flight(layout, micro_batches, rank) <= most / stages + 1.01, rank
    assert bubble_share(layout, micro_batches) == pytest.approx(ideal_bubble(layout, micro_batches), abs=0.03)


def test_more_recomputation_needs_less_memory() -> None:
    config = compose("train", TrainConfig, [LLAMA2_7B, "engine.precision=bf16", "data.shards=x"])
    layout = resolve_layout(config, 64)
    needs = {}
    for mode in ("none", "selective", "every_n", "full"):
        engine = replace(config.engine, activation_checkpointing=ActivationCheckpointing[mode])
        needs[mode] = rank_memory(replace(config, engine=engine), layout, 4096, 16, 0).allocated
    for some in ("selective", "every_n"):
        assert needs["none"] > 1.2 * needs[some] > 1.2 * 1.2 * needs["full"]
