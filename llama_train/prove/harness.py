"""Run a configuration in several layouts and measure how far each is from one process.

torch is imported only where tensors are read, for the processes that compute are others, and numpy and pyarrow only
where shards are made: --help needs none of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from llama_foundation import compose
from llama_foundation.errors import RunError
from llama_foundation.files import checksum, publish_text
from llama_train.config import EngineName, TrainConfig
from llama_train.prove.case import Case
from llama_train.prove.start import log_file, run_worker
from llama_train.prove.stretch import TIMEOUT_SECONDS, Stretch

if TYPE_CHECKING:
    import numpy as np
    import torch

    from llama_train.checkpoint.restore import Checkpoint


@dataclasses.dataclass(frozen=True)
class Differences:
    """How far a run was from another, the largest of each; gradients are those of the first step of every part."""

    loss: float  # nats, absolute, of any step
    gradient: float  # relative to the parameter's largest element
    norm: float  # of the gradient, relative, of any step
    weight: float  # absolute, after the last step
    worst_parameter: str = ""  # the canonical name of the one with the largest gradient difference

    def within(self, limit: Differences) -> bool:
        """Whether none is above `limit`; a NaN is."""
        return (
            self.loss <= limit.loss
            and self.gradient <= limit.gradient
            and self.norm <= limit.norm
            and self.weight <= limit.weight
        )


FLOAT64 = Differences(loss=1e-12, gradient=1e-10, norm=1e-10, weight=1e-9)
"""What docs/architecture.md, Proof, asks for; a norm of gradients is held to what they are held to."""


def run_case(case: Case, config: TrainConfig, directory: Path, fault: str | None = None) -> list[Path]:
    """Run the parts of `case`, each in processes of its own; return where each left its results.

    A beginning that another case has had in the same `directory` is not run again.

    Raises:
        RunError: a process failed or took too long; the end of its output is in the message.
    """
    resume, first, places = None, 0, []
    beginning = case.variant.name
    for part in case.parts:
        model = dataclasses.replace(config.model, **case.variant.model)
        data = dataclasses.replace(config.data, **case.variant.data)
        layout = dataclasses.replace(config.layout, **part.layout)
        engine = dataclasses.replace(config.engine, **part.engine)
        mine = dataclasses.replace(config, model=model, data=data, layout=layout, engine=engine)
        rows, tokens = case.variant.masked_rows, case.variant.masked_tokens
        kept = {first, *(step for step in case.gradient_steps if first <= step < part.last)}
        stretch = Stretch(first, part.last, resume, fault, rows, tokens, tuple(sorted(kept)))
        text = compose.dump(mine)
        beginning = checksum(f"{beginning}{text}{stretch}".encode())
        place = directory / beginning
        if not (place / "losses.json").exists():
            publish_text(place / "config.yaml", text)
            publish_text(place / "stretch.json", json.dumps(dataclasses.asdict(stretch)))
            _run_processes(place, part.world, case.name, config.engine.name is EngineName.deepspeed)
        resume, first = str(place / "weights" / f"step-{part.last:08d}"), part.last
        places.append(place)
    return places


def _run_processes(place: Path, world: int, name: str, deepspeed: bool) -> None:
    # Forked from a server that has imported torch and its compiler: eight imports take longer than most proofs.
    context = multiprocessing.get_context("forkserver")
    # The others are what the worker, and the main module that every process runs again, would import late.
    modules = ["llama_train.prove.worker", "torch.profiler", "llama_train.prove.__main__"]
    context.set_forkserver_preload([*modules, *(["llama_train.prove.import_deepspeed"] if deepspeed else [])])
    processes = [context.Process(target=run_worker, args=(place, rank, world)) for rank in range(world)]
    for process in processes:
        process.start()
    waiting = {process.sentinel: rank for rank, process in enumerate(processes)}
    deadline = time.monotonic() + TIMEOUT_SECONDS + 30
    try:
        while waiting:
            ended = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ended:
                late = ", ".join(map(str, sorted(waiting.values())))
                raise RunError(f"{name}: not done after {TIMEOUT_SECONDS + 30:.0f} s: rank {late}; see {place}")
            for sentinel in ended:
                rank = waiting.pop(sentinel)
                processes[rank].join()
                if processes[rank].exitcode:
                    log = log_file(place, rank)
                    output = log.read_text(errors="replace") if log.exists() else "before it could say anything"
                    raise RunError(
                        f"{name}: rank {rank} ended with status {processes[rank].exitcode}:\n{output[-3000:]}"
                    )
    finally:
        for process in processes:
            process.kill()
            process.join()


def compare(places: list[Path], reference: Path) -> Differences:
    """Measure the run in `places` against the one-process run in `reference`.

    Raises:
        RunError: it did not read the reference's rows, in their order.
    """
    from llama_train.checkpoint.restore import open_checkpoint

    rows, expected_rows = _rows(places), _rows([reference])
    for step, (own, theirs) in enumerate(zip(rows, expected_rows, strict=True)):
        if own != theirs:
            raise RunError(f"step {step + 1} did not read the rows that one process reads")
    ours, expected = results(places), results([reference])
    gradients = [
        _largest(open_checkpoint(kept), open_checkpoint(reference / "gradients" / kept.name), relative=True)
        for place in places
        for kept in sorted((place / "gradients").glob("step-*"))
    ]
    gradient = _worst(difference for _, difference in gradients)
    worst = next(name for name, difference in gradients if difference is gradient)
    _, weight = _largest(open_checkpoint(places[-1] / "weights"), open_checkpoint(reference / "weights"))
    return Differences(
        _worst(abs(a["loss"] - b["loss"]) for a, b in zip(ours, expected, strict=True)),
        gradient,
        _worst(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(ours, expected, strict=True)),
        weight,
        worst,
    )


def _worst(values: Iterable[float]) -> float:
    """Return the largest; a NaN is the largest of all."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def results(places: list[Path]) -> list[dict]:
    """Return what the engine gave for each step of a run."""
    return [r for place in places for r in json.loads((place / "losses.json").read_text(encoding="utf-8"))]


def _rows(places: list[Path]) -> list[list[str]]:
    """Return for every step the digests of the batch's rows, as the ranks have read them."""
    steps: list[list[str]] = []
    for place in places:
        read: dict[int, list[list[str]]] = {}
        for path in place.glob("rows-*.json"):
            rank = json.loads(path.read_text(encoding="utf-8"))
            if read.setdefault(rank["data_rank"], rank["steps"]) != rank["steps"]:
                raise RunError(f"{path.name}: two ranks of data rank {rank['data_rank']} did not read the same rows")
        parts = [read[rank] for rank in sorted(read)]
        steps += [[row for part in step for row in part] for step in zip(*parts, strict=True)]
    return steps


def _largest(ours: Checkpoint, theirs: Checkpoint, relative: bool = False) -> tuple[str, float]:
    """Return the tensor that differs most and by how much, optimizer state left out."""
    assert ours.tensors.keys() == theirs.tensors.keys()
    worst, largest = "", -1.0
    for name in theirs.tensors:
        if name.startswith("optimizer/"):
            continue
        a, b = whole(ours, name), whole(theirs, name)
        difference = float((a - b).abs().max())
        if relative:
            difference /= max(float(b.abs().max()), 1e-300)
        if not difference <= largest:  # also when it is NaN
            worst, largest = name.partition("/")[2], difference
    return worst, largest


def whole(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    shape = checkpoint.tensors[name].shape
    return checkpoint.read(name, (0,) * len(shape), shape)


def make_shards(
    directory: Path, vocabulary: int, tokens: int, validation_tokens: int = 0, packed_for: int | None = None
) -> None:
    """Write token shards of random walks through the vocabulary, short and long, from two sources.

    Args:
        packed_for: a sequence length; the training documents are packed for it by best fit.
    """
    import numpy as np

    from data_pipeline.shards.pack_writer import write_packs
    from data_pipeline.shards.reader import ShardSet
    from data_pipeline.shards.writer import write_root

    sources = ["even", "odd"]
    splits = {"train": tokens, "validation": validation_tokens}
    splits = {split: count for split, count in splits.items() if count > 0}
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for source in sources:
            _write_random_documents(directory / split / source, vocabulary, count // len(sources), generator)
    publish_text(directory / "tokenizer" / "none.txt", "these documents are random numbers: no tokenizer made them\n")
    tokenizer = {
        "file": "tokenizer/none.txt",
        "fingerprint": "proof",
        "vocabulary_size": vocabulary,
        "bos_id": 1,
        "eos_id": 2,
    }
    write_root(directory, tokenizer, dict.fromkeys(splits, sources))
    if packed_for is not None:
        for source in sources:
            write_packs(ShardSet(directory / "train" / source), packed_for)


def _write_random_documents(directory: Path, vocabulary: int, tokens: int, generator: np.random.Generator) -> None:
    import numpy as np

    from data_pipeline.shards.writer import ShardSetWriter

    with ShardSetWriter(directory, "proof", vocabulary) as writer:
        written = row = 0
        while written < tokens:
            length = int(generator.integers(2, 60))
            walk = generator.integers(vocabulary) + np.cumsum(generator.integers(1, 4, length))
            ids = np.concatenate([[1], 3 + walk % (vocabulary - 3), [2]])
            provenance = {
                "record_id": f"{row:032x}",
                "source": directory.name,
                "file": "random",
                "row": row,
                "url": None,
                "language": None,
                "first_words": "",
            }
            writer.add(ids, provenance)
            written += length + 2
            row += 1
