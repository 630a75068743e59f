"""A rank of 16,384 starts the engine of Llama 3.1 405B with its part of it, and nothing else, in seconds.

torch's fake process group answers for the other ranks.
"""

import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from llama_foundation.compose import compose
from llama_train.config import TrainConfig
from llama_train.engine import native, shared
from llama_train.parallel.resolve import resolve_layout

WORLD = 16384
# 7 layers: q and o 2 · 16384², k and v 2 · 16384 · 1024, feed-forward 3 · 16384 · 53248, over 8 tensor ranks and 128 of
# FSDP2; norms over the 128 only.
LAYERS = 7 * ((2 * 16384**2 + 2 * 16384 * 1024 + 3 * 16384 * 53248) // 8 // 128 + 2 * 16384 // 128)
# 128,256 rows over 8 are 16,032, which 127 ranks of 126 rows and one of 30 share.
FIRST = LAYERS + 126 * 16384  # with the embedding
LAST = LAYERS + 30 * 16384 + 16384 // 128  # with head and norm


@pytest.fixture
def rank_of_many(request: pytest.FixtureRequest) -> Iterator[int]:
    dist.init_process_group("fake", rank=request.param, world_size=WORLD, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize(("rank_of_many", "held"), [(0, FIRST), (WORLD - 1, LAST)], indirect=["rank_of_many"])
def test_a_rank_of_16384_starts_from_its_slice(rank_of_many: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = "layout=405b_16384gpus experiment=llama3.1_405b data.segments=[] data.sequence_length=8192"
    config = compose("train", TrainConfig, [*overrides.split(), "data.batch_size=2048", "data.shards=x"])
    made: list[int] = []
    initial_values = shared.initial_values

    def counted(*arguments: object) -> torch.Tensor:
        values = initial_values(*arguments)
        made.append(values.numel())
        return values

    monkeypatch.setattr(shared, "initial_values", counted)
    began = time.process_time()
    engine = native.NativeEngine(config, resolve_layout(config, WORLD, rank_of_many), torch.device("cpu"))
    assert time.process_time() - began < 20  # about 1 on one core
    assert sum(chunk.tensor.numel() for chunk in engine.chunks(optimizer=False)) == held
    assert sum(chunk.tensor.numel() for chunk in engine.chunks()) == 3 * held
    assert sum(made) == held
