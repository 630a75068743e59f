"""One process of a proof: trains the shrunk configuration for a stretch of steps and leaves what it saw.

Started by `harness.py`, once per rank, in a process of its own.
"""

import faulthandler
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import xxhash

from data_pipeline.shards.reader import open_root
from llama_foundation import compose
from llama_train.checkpoint.restore import open_checkpoint, restore
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.data.order import TokenOrder
from llama_train.distributed import distributed
from llama_train.engine.build import build_engine
from llama_train.engine.engine import Chunk
from llama_train.environment import environment_rank
from llama_train.model.llama import IGNORE
from llama_train.optimizer.schedule import learning_rate
from llama_train.parallel.resolve import resolve_layout
from llama_train.prove.faults import plant
from llama_train.prove.stretch import TIMEOUT_SECONDS, Stretch


def train_stretch(directory: Path) -> None:
    """Train the stretch described in `directory` and leave losses.json, gradients/ and weights/ there.

    Every rank leaves rows-<rank>.json: a digest of every row that it read.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    faulthandler.enable()
    faulthandler.dump_traceback_later(TIMEOUT_SECONDS, exit=True)
    config = compose.load(directory / "config.yaml", TrainConfig)
    stretch = Stretch(**json.loads((directory / "stretch.json").read_text(encoding="utf-8")))
    rank, size = environment_rank()
    store = dist.FileStore(str(directory / "meeting"), size)
    with distributed(config.cluster.device, store, TIMEOUT_SECONDS) as world:
        layout = resolve_layout(config, size, rank)
        order = TokenOrder(config.data, config.steps, config.seed, (), open_root(Path(config.data.shards)))
        engine = build_engine(config, layout, world.device)
        plant(stretch.fault, engine, layout)
        if stretch.resume is not None:
            checkpoint = open_checkpoint(Path(stretch.resume), group=world.control)
            engine.load_chunks(restore(checkpoint, engine.chunks()))
            engine.load_scalars(checkpoint.state["engine"])

        def keep(kind: str, step: int, chunks: Iterator[Chunk]) -> None:
            saver = CheckpointStore(directory / kind, world.control, keep_last=stretch.last)
            saver.save(step, chunks, {"engine": engine.scalars()})

        results, rows = [], []
        for step in range(stretch.first, stretch.last):
            batches = order.local_micro_batches(step, layout.data_rank, layout.data_world, layout.micro_batch_size)
            rows.append([digest for batch in batches for digest in _digests(batch)])
            _mask(batches, layout.data_rank, stretch)
            rate = learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)
            look = partial(keep, "gradients", step) if step in stretch.gradient_steps else None
            result = engine.step(batches, rate, look)
            results.append(asdict(result))
        keep("weights", stretch.last, engine.chunks())
        read = {"data_rank": layout.data_rank, "steps": rows}
        (directory / f"rows-{rank}.json").write_text(json.dumps(read), encoding="utf-8")
        if world.main:
            (directory / "losses.json").write_text(json.dumps(results), encoding="utf-8")


def _digests(batch: MicroBatch) -> Iterator[str]:
    """Yield a digest of every row: tokens, labels, positions and document ids."""
    tensors = [batch.tokens, batch.labels, batch.positions]
    if batch.document_ids is not None:
        tensors.append(batch.document_ids)
    for row in range(len(batch.tokens)):
        yield xxhash.xxh3_64_hexdigest(b"".join(tensor[row].numpy().tobytes() for tensor in tensors))


def _mask(batches: list[MicroBatch], data_rank: int, stretch: Stretch) -> None:
    """Take the labels away from the rows and tokens that the stretch says; rows count over the whole batch."""
    row = data_rank * sum(len(batch.labels) for batch in batches)
    for batch in batches:
        batch.labels[: max(stretch.masked_rows - row, 0)] = IGNORE
        batch.labels[:, : stretch.masked_tokens] = IGNORE
        row += len(batch.labels)
