"""One process of a proof: trains the shrunk configuration for a stretch of steps and leaves what it saw.

Started by `harness.py`, once per rank, in a process of its own.
"""

import faulthandler
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.shards.reader import open_root
from llama_foundation import compose
from llama_train.checkpoint.restore import open_checkpoint, restore
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import TrainConfig
from llama_train.data.order import TokenOrder
from llama_train.distributed import distributed
from llama_train.engine.build import build_engine
from llama_train.engine.engine import Chunk
from llama_train.environment import environment_rank
from llama_train.optimizer.schedule import learning_rate
from llama_train.parallel.resolve import resolve_layout
from llama_train.prove.faults import plant
from llama_train.prove.stretch import TIMEOUT_SECONDS, Stretch


def train_stretch(directory: Path) -> None:
    """Train the stretch described in `directory` and leave losses.json, gradients/ and weights/ there."""
    torch.set_num_threads(1)
    faulthandler.enable()
    faulthandler.dump_traceback_later(TIMEOUT_SECONDS, exit=True)
    config = compose.load(directory / "config.yaml", TrainConfig)
    stretch = Stretch(**json.loads((directory / "stretch.json").read_text(encoding="utf-8")))
    rank, size = environment_rank()
    store = dist.FileStore(str(directory / "meeting"), size)
    with distributed("cpu", store, TIMEOUT_SECONDS) as world:
        layout = resolve_layout(config, size, rank)
        order = TokenOrder(config.data, config.steps, config.seed, (), open_root(Path(config.data.shards)))
        engine = build_engine(config, layout, world.device)
        plant(stretch.fault, engine, world)
        if stretch.resume is not None:
            checkpoint = open_checkpoint(Path(stretch.resume), group=world.control)
            engine.load_chunks(restore(checkpoint, engine.chunks()))
            engine.load_scalars(checkpoint.state["engine"])

        def keep(kind: str, step: int, chunks: Iterator[Chunk]) -> None:
            saver = CheckpointStore(directory / kind, world.control, keep_last=2, keep_every=0, asynchronous=False)
            saver.save(step, chunks, {"engine": engine.scalars()})

        results = []
        for step in range(stretch.first, stretch.last):
            batches = order.local_micro_batches(step, layout.data_rank, layout.data_world, layout.micro_batch_size)
            rate = learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)
            look = (lambda chunks: keep("gradients", 1, chunks)) if step == stretch.first else None
            result = engine.step(batches, rate, look)
            results.append({"loss": result.loss, "grad_norm": result.grad_norm, "tokens": result.tokens})
        keep("weights", stretch.last, itertools.chain(engine.chunks()))
        if world.main:
            (directory / "losses.json").write_text(json.dumps(results), encoding="utf-8")
