"""Runs of either engine in processes of their own, step by step, for tests that compare them."""

import dataclasses
import json
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from data_pipeline.shards.reader import open_root
from llama_foundation import compose
from llama_train.config import TrainConfig

SECONDS = 280.0


@dataclasses.dataclass(frozen=True)
class Leg:
    """Steps [first, last) of a run on `world` ranks, from the checkpoint `resume` on."""

    config: TrainConfig
    world: int
    first: int
    last: int
    resume: Path | None = None
    gradients: bool = False  # whether those of the first step are kept
    saved_by_deepspeed: bool = False  # whether DeepSpeed leaves a checkpoint of its own in ds/ at the end
    poisoned: int = -1  # a step whose gradients are made NaN; it is taken again after the refusal


def run_leg(leg: Leg, directory: Path) -> list[dict[str, Any]]:
    """Run `leg`; leave step-... (and gradients/) in `directory`, return loss, norm and tokens of every step."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "meeting").unlink(missing_ok=True)  # of a leg before
    (directory / "config.yaml").write_text(compose.dump(leg.config))
    what = {"first": leg.first, "last": leg.last, "resume": str(leg.resume or ""), "gradients": leg.gradients}
    what |= {"poisoned": leg.poisoned, "saved_by_deepspeed": leg.saved_by_deepspeed}
    (directory / "leg.json").write_text(json.dumps(what))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llama_train.engine.native", "deepspeed"])
    processes = [context.Process(target=be_rank, args=(directory, rank, leg.world)) for rank in range(leg.world)]
    try:
        for process in processes:
            process.start()
        waiting = {process.sentinel for process in processes}
        while waiting:
            ended = wait(list(waiting), timeout=SECONDS)
            waiting -= set(ended)
            bad = [rank for rank, process in enumerate(processes) if process.exitcode]
            if bad or not ended:
                logs = "".join(f"\n{rank}: {log(directory, rank).read_text()[-3000:]}" for rank in bad)
                raise AssertionError(f"{directory}: {bad or 'too slow'}{logs}")
    finally:
        for process in processes:
            process.kill()
            process.join()
    return json.loads((directory / "steps.json").read_text())


def log(directory: Path, rank: int) -> Path:
    return directory / f"rank-{rank}.log"


def poison(chunks: Any) -> None:
    for chunk in chunks:
        chunk.tensor.fill_(float("nan"))


def be_rank(directory: Path, rank: int, world_size: int) -> None:
    file = os.open(log(directory, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    import torch

    torch.set_num_threads(1)
    train(directory, rank, world_size)


def train(directory: Path, rank: int, size: int) -> None:
    import pytest
    import torch.distributed as dist

    from llama_train.checkpoint.restore import open_checkpoint, restore
    from llama_train.checkpoint.store import CheckpointStore
    from llama_train.data.order import TokenOrder
    from llama_train.distributed import distributed
    from llama_train.engine.build import build_engine
    from llama_train.engine.engine import RefusedUpdate
    from llama_train.optimizer.schedule import learning_rate
    from llama_train.parallel.resolve import resolve_layout

    config = compose.load(directory / "config.yaml", TrainConfig)
    leg = json.loads((directory / "leg.json").read_text())
    with distributed("cpu", dist.FileStore(str(directory / "meeting"), size), SECONDS) as world:
        layout = resolve_layout(config, size, rank)
        order = TokenOrder(config.data, config.steps, config.seed, (), open_root(Path(config.data.shards)))
        engine = build_engine(config, layout, world.device)
        if leg["resume"]:
            checkpoint = open_checkpoint(Path(leg["resume"]), group=world.control)
            engine.load_chunks(restore(checkpoint, engine.chunks()))
            engine.load_scalars(checkpoint.state["engine"])

        def keep(where: Path, step: int, chunks: Any) -> None:
            CheckpointStore(where, world.control).save(step, chunks, {"engine": engine.scalars()})

        if leg["first"] == 0:
            keep(directory, 0, engine.chunks())
        steps = []
        for step in range(leg["first"], leg["last"]):
            batches = order.local_micro_batches(step, layout.data_rank, layout.data_world, layout.micro_batch_size)
            rate = learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)
            look = None
            if leg["gradients"] and step == leg["first"]:

                def look(chunks: Any) -> None:
                    keep(directory / "gradients", 1, chunks)

            if step == leg["poisoned"]:
                with pytest.raises(RefusedUpdate):
                    engine.step(batches, rate, poison)
            result = engine.step(batches, rate, look)
            steps.append(dataclasses.asdict(result))
        keep(directory, leg["last"], engine.chunks())
        if leg["saved_by_deepspeed"]:
            engine.deepspeed.save_checkpoint(str(directory / "ds"))
        loss, tokens = engine.evaluate(order.local_micro_batches(0, layout.data_rank, layout.data_world, 1))
        if rank == 0:
            (directory / "evaluated.json").write_text(json.dumps([loss, tokens]))
            (directory / "steps.json").write_text(json.dumps(steps))
