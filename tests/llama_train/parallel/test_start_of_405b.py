"""A rank of 16,384 makes its part of Llama 3.1 405B, and nothing else, in seconds."""

import time

import torch

from llama_foundation.compose import compose
from llama_train.config import TrainConfig
from llama_train.model.initialize import initial_values
from llama_train.parallel.held import held_parameters
from llama_train.parallel.resolve import resolve_layout
from llama_train.parallel.stages import make_stage, stage_numbers
from llama_train.parallel.tensor import apply_tensor_parallel


def test_the_last_rank_of_16384_starts_from_its_slice() -> None:
    overrides = "layout=405b_16384gpus experiment=llama3.1_405b data.segments=[] data.sequence_length=8192"
    config = compose("train", TrainConfig, [*overrides.split(), "data.batch_size=2048", "data.shards=x"])
    layout = resolve_layout(config, 16384, 16383)
    began = time.process_time()
    models = {}
    for stage in stage_numbers(layout):
        with torch.device("meta"):
            models[stage] = make_stage(config.model, layout, stage)
        apply_tensor_parallel(models[stage], layout, object())  # the group is only called upon when it computes
    held = held_parameters(models, config.model, layout)
    # 7 layers: q and o 2 · 16384², k and v 2 · 16384 · 1024, feed-forward 3 · 16384 · 53248, over 8; norms whole; the
    # head 128256 · 16384 over 8, and the last norm.
    layer = (2 * 16384**2 + 2 * 16384 * 1024 + 3 * 16384 * 53248) // 8 + 2 * 16384
    assert sum(each.parameter.numel() for each in held) == 7 * layer + 128256 * 16384 // 8 + 16384
    assert all(each.parameter.is_meta for each in held)
    made = 0
    for each in held:
        # FSDP2 cuts the first dimension over 128 ranks; this is the first of them.
        lengths = list(each.parameter.shape)
        lengths[0] = -(-lengths[0] // layout.shard_world)
        offsets = [0] * len(lengths)
        if each.part.dimension is not None:
            offsets[each.part.dimension] = each.part.start
        values = initial_values(0, each.name, each.shape, tuple(offsets), tuple(lengths), config.model)
        made += values.numel()
    assert made < 1.01 * 3_052_126_208 / 128
    assert time.process_time() - began < 30  # about 1 on one core
