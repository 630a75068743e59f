"""Run a configuration in several layouts and measure how far each is from one process.

torch is imported only where tensors are read, for the processes that compute are others, and numpy and pyarrow only
where shards are made: --help needs none of them.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from llama_foundation import compose
from llama_foundation.errors import RunError
from llama_foundation.files import publish_text
from llama_train.config import TrainConfig
from llama_train.prove.start import log_file, run_worker
from llama_train.prove.stretch import TIMEOUT_SECONDS, Stretch

if TYPE_CHECKING:
    import numpy as np
    import torch

    from llama_train.checkpoint.restore import Checkpoint

BATCH_SIZE = 8  # sequences: divides over 1, 2 and 4 ranks with one or more micro-batches each

LOSS_TOLERANCE = 1e-12
GRADIENT_TOLERANCE = 1e-10
WEIGHT_TOLERANCE = 1e-9
"""Float64, docs/architecture.md, Proof: loss absolute, gradients relative to the parameter's largest, weights absolute
after 20 steps."""


@dataclass(frozen=True)
class Case:
    """One way of running the same 20 steps: (world size, last step) stretches, each resumed from the one before."""

    name: str
    stretches: tuple[tuple[int, int], ...]
    micro_batch_size: int
    layout: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How far a case was from the reference."""

    case: str
    loss_difference: float
    gradient_difference: float
    worst_parameter: str
    grad_norm_difference: float
    weight_difference: float
    seconds: float

    @property
    def passed(self) -> bool:
        return (
            self.loss_difference <= LOSS_TOLERANCE
            and self.gradient_difference <= GRADIENT_TOLERANCE
            and self.weight_difference <= WEIGHT_TOLERANCE
        )


def run_case(case: Case, config: TrainConfig, directory: Path, fault: str | None = None) -> None:
    """Run every stretch of `case` in processes of its own; results stay in `directory`/0, 1, ...

    Raises:
        RunError: a process failed or took too long; the end of its output is in the message.
    """
    resume = None
    first = 0
    for number, (world, last) in enumerate(case.stretches):
        place = directory / str(number)
        mine = dataclasses.replace(
            config,
            layout=dataclasses.replace(config.layout, **case.layout, micro_batch_size=case.micro_batch_size),
        )
        publish_text(place / "config.yaml", compose.dump(mine))
        publish_text(place / "stretch.json", json.dumps(dataclasses.asdict(Stretch(first, last, resume, fault))))
        _run_processes(place, world, case.name)
        resume, first = str(place / "weights" / f"step-{last:08d}"), last


def _run_processes(place: Path, world: int, name: str) -> None:
    # Forked from a server that has imported torch: eight imports take longer than most proofs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llama_train.prove.worker"])
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
                    output = log_file(place, rank).read_text(errors="replace")
                    raise RunError(
                        f"{name}: rank {rank} ended with status {processes[rank].exitcode}:\n{output[-3000:]}"
                    )
    finally:
        for process in processes:
            process.kill()
            process.join()


def compare(case: Case, directory: Path, reference: Path, seconds: float) -> Outcome:
    """Measure the case in `directory` against the one-process run in `reference`."""
    from llama_train.checkpoint.restore import open_checkpoint

    losses = _results(directory)
    expected = _results(reference)
    assert len(losses) == len(expected)
    if [r["tokens"] for r in losses] != [r["tokens"] for r in expected]:
        raise RunError(f"{case.name}: it did not see the reference's tokens")
    worst, gradient = _largest(
        open_checkpoint(directory / "0" / "gradients"), open_checkpoint(reference / "0" / "gradients"), relative=True
    )
    last = str(len(case.stretches) - 1)
    _, weight = _largest(
        open_checkpoint(directory / last / "weights"), open_checkpoint(reference / "0" / "weights"), relative=False
    )
    return Outcome(
        case.name,
        max(abs(a["loss"] - b["loss"]) for a, b in zip(losses, expected, strict=True)),
        gradient,
        worst,
        max(abs(a["grad_norm"] - b["grad_norm"]) for a, b in zip(losses, expected, strict=True)),
        weight,
        seconds,
    )


def _results(directory: Path) -> list[dict]:
    stretches = sorted((d for d in directory.iterdir() if d.is_dir()), key=lambda d: int(d.name))
    return [r for d in stretches for r in json.loads((d / "losses.json").read_text(encoding="utf-8"))]


def _largest(ours: Checkpoint, theirs: Checkpoint, relative: bool) -> tuple[str, float]:
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
