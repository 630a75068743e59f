"""One rank of a step with statistics: python statistics_job.py RANK SIZE MEETING OUT [OVERRIDE ...]."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from llama_foundation import compose
from llama_train.config import TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.distributed import distributed
from llama_train.engine.build import build_engine
from llama_train.observe.statistics import LayerStatistics
from llama_train.parallel.resolve import resolve_layout

VOCABULARY, LENGTH, BATCH = 101, 32, 4


def make_config(size: int, *overrides: str) -> TrainConfig:
    return compose.compose(
        "train",
        TrainConfig,
        [
            "model=tiny",
            f"model.vocab_size={VOCABULARY}",
            f"model.context={LENGTH}",
            "data.shards=none",
            f"data.sequence_length={LENGTH}",
            f"data.batch_size={BATCH}",
            "optimizer.learning_rate=1e-2",
            "steps=1",
            f"layout.micro_batch_size={BATCH // size // 2 or 1}",
            *overrides,
        ],
    )


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def micro_batches(rank: int, size: int, rows: int) -> list[MicroBatch]:
    tokens, labels = (part.chunk(size)[rank] for part in make_batch())
    positions = torch.arange(LENGTH).expand(rows, -1)
    return [
        MicroBatch(t, label, None, positions) for t, label in zip(tokens.split(rows), labels.split(rows), strict=True)
    ]


def main(rank: int, size: int, meeting: str, out: Path, *overrides: str) -> None:
    config = make_config(size, *overrides)
    with distributed("cpu", dist.FileStore(meeting, size), 60) as world:
        engine = build_engine(config, resolve_layout(config, size, rank), world.device)
        statistics = LayerStatistics(config.model, world.device, lambda: engine.chunks(optimizer=False))
        batches = micro_batches(rank, size, config.layout.micro_batch_size)
        engine.step(batches, 0.1, statistics.look_at_gradients, statistics.look_at_output)
        parameters, layers = statistics.take()
        again, _ = statistics.take()
        unseen = max(value for numbers in again.values() for value in numbers.values())
        out.write_text(json.dumps({"parameters": parameters, "layers": layers, "unseen": unseen}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), *sys.argv[5:])
