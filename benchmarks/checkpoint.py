"""Saving and loading a checkpoint against plain writes and reads, and what an asynchronous save costs a training step.

    python benchmarks/checkpoint.py [--directory DIR] [--mebibytes 512] [--steps 60] [--rounds 3]

Prints ratios measured in this run: plain and checkpoint take turns (A B A B), medians are compared. Files are dropped
from the page cache before they are read. The training run is `llama-train` itself, on the CPU, with and without
asynchronous checkpoints; its stall is the time that the loop stands still, plus what the steps are slower by while a
save is being written.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llama_foundation.files import BLOCK_BYTES
from llama_train.checkpoint.restore import open_checkpoint, restore
from llama_train.checkpoint.store import CheckpointStore
from llama_train.engine.engine import Chunk
from llama_train.observe.metrics import history
from llama_train.prove.harness import make_shards

CHECKPOINT_EVERY = 10
_WARM_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; default: the temporary directory")
    parser.add_argument("--mebibytes", type=int, default=512, help="size of the checkpoint")
    parser.add_argument("--steps", type=int, default=60, help="of each training run")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="benchmark-") as name:
        print(f"torch {torch.__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {name}")
        speed(Path(name), arguments.mebibytes * 2**20, arguments.rounds)
        stall(Path(name), arguments.steps, arguments.rounds)


def speed(directory: Path, size: int, rounds: int) -> None:
    """Print the speed of saving and loading `size` bytes, that of the disk, and the memory that they take."""
    matrix = torch.randn(size // 16 // 4 // 1024, 1024)
    chunks = [Chunk(f"weights/{number}", tuple(matrix.shape), (0, 0), matrix.clone()) for number in range(16)]
    total = sum(chunk.tensor.nbytes for chunk in chunks)
    data = memoryview(torch.cat([chunk.tensor for chunk in chunks]).view(-1).view(torch.uint8).numpy())
    plain, stored = directory / "plain", directory / "stored"
    store = CheckpointStore(stored, keep_last=1)
    written, saved, read, loaded = [], [], [], []
    for step in range(1, rounds + 1):
        written.append(seconds(lambda: write_plainly(plain, data)))
        saved.append(seconds(lambda step=step: store.save(step, chunks, {})))
        drop_from_cache(directory)
        read.append(seconds(lambda: read_plainly(plain, total)))
        loaded.append(seconds(lambda: load(stored, chunks)))
    report("save", total, written, saved, "plain write and fsync")
    report("load", total, read, loaded, "plain read")
    asynchronous = CheckpointStore(stored, keep_last=1, asynchronous=True)
    for what, act in (
        ("save", lambda: store.save(rounds + 1, chunks, {})),
        ("asynchronous save", lambda: (asynchronous.save(rounds + 2, chunks, {}), asynchronous.wait())),
        ("load into live tensors", lambda: load(stored, chunks)),
    ):
        print(
            f"peak memory of {what}: {memory_growth(act) / 2**20:.0f} MiB on top of {total / 2**20:.0f} MiB of tensors"
        )
    shutil.rmtree(stored)
    plain.unlink()


def stall(directory: Path, steps: int, rounds: int) -> None:
    """Print what asynchronous checkpoints cost a training step."""
    make_shards(directory / "shards", 2048, 400_000)
    without: list[dict[str, float]] = []
    with_checkpoints: list[dict[str, float]] = []
    for number in range(rounds):
        without.append(trained(directory, f"without-{number}", steps, 0))
        with_checkpoints.append(trained(directory, f"with-{number}", steps, CHECKPOINT_EVERY))
    step = statistics.median(each["step"] for each in without)
    still = statistics.median(each["still"] for each in with_checkpoints)
    during = statistics.median(each["during"] for each in with_checkpoints)
    slower = statistics.median(each["step"] for each in with_checkpoints) - step
    size = with_checkpoints[0]["bytes"] / 2**20
    print(
        f"asynchronous checkpoints of {size:.0f} MiB every {CHECKPOINT_EVERY} steps; a step takes {step * 1e3:.1f} ms"
    )
    print(f"the loop stands still {still * 1e3:.2f} ms a step ({still / step:.2%})")
    print(
        f"the step after a save takes {during * 1e3:+.1f} ms against the run's others: {during / step:+.2%} of one step"
    )
    print(f"the median step of runs with checkpoints against those without: {slower / step:+.2%}")


def trained(directory: Path, name: str, steps: int, every: int) -> dict[str, float]:
    """Train; return the median step's seconds without its checkpoint, and what checkpoints cost."""
    settings = {
        "model": "tiny",
        "model.vocab_size": 2048,
        "model.hidden_size": 256,
        "model.layers": 4,
        "model.ffn_size": 704,
        "data.shards": directory / "shards",
        "data.sequence_length": 128,
        "data.batch_size": 4,
        "optimizer.learning_rate": 1e-3,
        "steps": steps,
        "checkpoint.every": every,
        "checkpoint.asynchronous": "true",
        "logging.console": "none",
        "logging.report": "false",
        "cluster.device": "cpu",
        "output": directory,
        "name": name,
    }
    command = [sys.executable, "-m", "llama_train", *(f"{key}={value}" for key, value in settings.items())]
    # one thread computes, so that the one that writes has a core where there are two
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    subprocess.run(command, env=environment, check=True)
    # a record ends before its step's checkpoint is taken, so the one after it has that checkpoint's seconds
    rows = history(directory / name / "metrics.jsonl")[_WARM_STEPS:]
    size = sum(path.stat().st_size for path in (directory / name / "checkpoints").rglob("rank-*.bin"))
    count = len(list((directory / name / "checkpoints").iterdir()))
    shutil.rmtree(directory / name)
    computing = [(row["step"], row["seconds"] - row["checkpoint_seconds"]) for row in rows]
    after = [seconds for step, seconds in computing if every and step % every == 1]
    others = [seconds for step, seconds in computing if not every or step % every != 1]
    return {
        "during": statistics.median(after) - statistics.median(others) if after else 0.0,
        "step": statistics.median(row["seconds"] - row["checkpoint_seconds"] for row in rows),
        "still": statistics.fmean(row["checkpoint_seconds"] for row in rows),
        "bytes": size / count,
    }


def report(what: str, size: int, plain: list[float], ours: list[float], against: str) -> None:
    a, b = statistics.median(plain), statistics.median(ours)
    print(f"{what}: {size / b / 1e6:.0f} MB/s, {against} {size / a / 1e6:.0f} MB/s, ratio {a / b:.2f}")


def write_plainly(path: Path, data: memoryview) -> None:
    with open(path, "wb") as file:
        for begin in range(0, len(data), BLOCK_BYTES):
            file.write(data[begin : begin + BLOCK_BYTES])
        file.flush()
        os.fsync(file.fileno())


def read_plainly(path: Path, size: int) -> None:
    with open(path, "rb", buffering=0) as file:
        target = memoryview(bytearray(size))
        while count := file.readinto(target[:BLOCK_BYTES]):
            target = target[count:]


def load(directory: Path, chunks: list[Chunk]) -> None:
    for target, found in zip(chunks, restore(open_checkpoint(directory), chunks), strict=True):
        target.tensor.copy_(found.tensor)


def drop_from_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def memory_growth(act: Callable[[], object]) -> int:
    """By how many bytes resident memory rises above what it was, at its peak."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    act()
    return status("VmHWM") - before


if __name__ == "__main__":
    main()
