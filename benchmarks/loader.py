"""Tokens per second of the loader from page cache, and a seek in an order of 15 trillion tokens.

    python -m benchmarks.loader

The contestants run A B A B ... in this one process over the same shards; a figure is the median over the rounds, a
ratio the median of the rounds' ratios, and time is CPU time of one core. All but `memmap slices` make the same four
tensors: tokens, labels, document ids, positions. The seek runs in a process of its own.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.shards.pack_writer import write_packs
from data_pipeline.shards.reader import ShardRoot, open_root
from data_pipeline.shards.writer import ShardSetWriter, write_root
from llama_train.config import DataConfig, Packing
from llama_train.data.order import TokenOrder

TARGET = 50e6  # tokens per second and core
TARGET_SEEK_MS = 10.0
TARGET_SEEK_MB = 200.0
VOCABULARY = 128_256  # Llama 3's: token ids are int32
BOS, EOS = 128_000, 128_001
IGNORE = -100  # model/llama.py's, which a seek must not import
RANKS = 32
PER_RANK = 16  # sequences of a rank in a step, in micro-batches of one

Contestant = Callable[[int], None]
"""Load what a rank reads in a step."""


def make_shards(directory: Path, tokens: int, sequence_length: int) -> None:
    """Write documents of about 1,000 tokens (log-normal, median 550), and pack them."""
    random = np.random.default_rng(0)
    with ShardSetWriter(directory / "train" / "web", "benchmark", VOCABULARY) as writer:
        written = row = 0
        while written < tokens:
            ids = random.integers(0, BOS, max(2, int(random.lognormal(6.3, 1.1))))
            ids[0], ids[-1] = BOS, EOS
            origin = {
                "record_id": f"{row:032x}",
                "source": "web",
                "file": "random",
                "row": row,
                "url": None,
                "language": None,
            }
            writer.add(ids, origin | {"first_words": ""})
            written, row = written + len(ids), row + 1
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "none.txt").write_text("random token ids\n")
    tokenizer = {"file": "tokenizer/none.txt", "fingerprint": "benchmark", "vocabulary_size": VOCABULARY}
    write_root(directory, tokenizer | {"bos_id": BOS, "eos_id": EOS}, {"train": ["web"]})
    shards = open_root(directory).open("train", "web")
    started = time.process_time()
    write_packs(shards, sequence_length)
    seconds = time.process_time() - started
    print(f"llama-pack: {shards.documents / seconds:,.0f} documents/s, {shards.tokens / seconds:,.0f} tokens/s\n")


def our_loader(root: ShardRoot, sequence_length: int, packing: Packing) -> Contestant:
    """What a training step calls."""
    data = DataConfig("", sequence_length=sequence_length, batch_size=RANKS * PER_RANK, packing=packing)
    order = TokenOrder(data, 10**6, seed=0, root=root)

    def load(step: int) -> None:
        assert len(order.local_micro_batches(step, step % RANKS, RANKS, 1)) == PER_RANK

    return load


def memmap_slices(path: Path, sequence_length: int) -> Contestant:
    """The least that a loader can do: random slices, and the same shifted by one. No documents."""
    import torch

    random = np.random.default_rng(0)

    def load(step: int) -> None:
        ids = np.memmap(path, np.int32, mode="r")
        for start in random.integers(0, len(ids) - sequence_length - 1, PER_RANK):
            torch.from_numpy(ids[start : start + sequence_length].astype(np.int64))
            torch.from_numpy(ids[start + 1 : start + 1 + sequence_length].astype(np.int64))

    return load


class Rows:
    """A torch map-style dataset over a memory-mapped file; documents are found by their first token."""

    def __init__(self, path: Path, sequence_length: int) -> None:
        self.ids = np.memmap(path, np.int32, mode="r")
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.sequence_length

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        start = row * self.sequence_length
        ids = np.array(self.ids[start : start + self.sequence_length + 1])
        begins = ids == BOS
        tokens, labels = ids[:-1], np.where(begins[1:], IGNORE, ids[1:])
        columns = np.arange(self.sequence_length, dtype=np.int32)
        first = np.maximum.accumulate(np.where(begins[:-1], columns, 0))
        return tokens, labels, np.cumsum(begins[:-1], dtype=np.int32), columns - first


def data_loader(path: Path, sequence_length: int) -> Contestant:
    """torch's DataLoader, in this process."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(Rows(path, sequence_length), batch_size=1, shuffle=True, generator=generator)
    endless: Iterator = itertools.chain.from_iterable(itertools.repeat(loader))

    def load(step: int) -> None:
        for _ in range(PER_RANK):
            next(endless)

    return load


def alternate(contestants: dict[str, Contestant], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the CPU seconds of a step of every contestant, round by round."""
    for load in contestants.values():
        for step in range(steps):  # everything is in page cache and verified after this
            load(step)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, load in contestants.items():
            started = time.process_time()
            for step in range(number * steps, (number + 1) * steps):
                load(step)
            seconds[name].append((time.process_time() - started) / steps)
    return seconds


def compare(tokens: int, sequence_length: int, rounds: int, steps: int) -> None:
    """Print tokens per second of every contestant, against the target and against ours."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loader-") as temporary:
        directory = Path(temporary)
        make_shards(directory, tokens, sequence_length)
        root = open_root(directory)
        path = directory / "train" / "web" / "shard-00000.bin"
        contestants = {
            "ours, concatenate": our_loader(root, sequence_length, Packing.concatenate),
            "ours, best_fit": our_loader(root, sequence_length, Packing.best_fit),
            "torch DataLoader": data_loader(path, sequence_length),
            "memmap slices": memmap_slices(path, sequence_length),
        }
        seconds = alternate(contestants, rounds, steps)
    loaded = PER_RANK * sequence_length
    print(f"{'sequences of ' + str(sequence_length):24}  million tokens/s and core   / target 50   ours / this")
    ours = seconds["ours, concatenate"]
    for name, each in seconds.items():
        speed = loaded / statistics.median(each)
        ratio = statistics.median(theirs / mine for theirs, mine in zip(each, ours, strict=True))
        print(f"{name:24}  {speed / 1e6:25.1f}   {speed / TARGET:11.2f}   {ratio:11.2f}")


@dataclass
class Counted:
    """The counts of a source, without a file."""

    shard_tokens: list[int]


class FifteenTrillion:
    """Two sources of 3,750 files of 4 billion tokens."""

    fingerprint = "counts"
    files = {"books": 750, "web": 3000}  # noqa: RUF012

    def sources(self, split: str) -> list[str]:
        return sorted(self.files)

    def open(self, split: str, source: str) -> Counted:
        return Counted([4 * 10**9] * self.files[source])


def seek() -> dict[str, float]:
    """Find 50 random steps of an order of 15 trillion tokens."""
    steps = 15 * 10**12 // (2048 * 8192)
    data = DataConfig("", sequence_length=8192, batch_size=2048)
    started = time.perf_counter()
    order = TokenOrder(data, steps, seed=0, root=FifteenTrillion())
    built = time.perf_counter() - started
    share, batch = [], []
    for step in np.random.default_rng(0).integers(0, steps, 50).tolist():
        samples = order.samples(step)
        started = time.process_time()
        first = [order.locate(step, sample) for sample in samples[:PER_RANK]]
        share.append(time.process_time() - started)
        rest = [order.locate(step, sample) for sample in samples[PER_RANK:]]
        batch.append(time.process_time() - started)
        assert len(first) + len(rest) == 2048
    return {
        "build_ms": 1e3 * built,
        "share_ms": 1e3 * statistics.median(share),
        "share_worst_ms": 1e3 * max(share),
        "batch_ms": 1e3 * statistics.median(batch),
        "peak_mb": _peak_mb(),
        "torch": float("torch" in sys.modules),
    }


def _peak_mb() -> float:
    """The most memory that this process has held: getrusage would count the parent's from before exec."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def report_seek() -> None:
    """Run the seek in a process of its own and print it against the targets."""
    command = [sys.executable, "-m", "benchmarks.loader", "--seek"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    ratio = found["share_ms"] / TARGET_SEEK_MS
    print(
        f"\nseek in 15 trillion tokens, 3,750 files: {found['share_ms']:.2f} ms to a rank's {PER_RANK} sequences "
        f"(worst of 50: {found['share_worst_ms']:.2f} ms), {ratio:.2f} of the target of {TARGET_SEEK_MS:.0f} ms\n"
        f"whole batch of 2,048 sequences: {found['batch_ms']:.1f} ms; the order itself, once: {found['build_ms']:.0f} "
        f"ms\npeak memory of that process: {found['peak_mb']:.0f} MB, {found['peak_mb'] / TARGET_SEEK_MB:.2f} of the "
        f"target of {TARGET_SEEK_MB:.0f} MB"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_000_000, help="in the shards that are made for it")
    parser.add_argument("--sequence-length", type=int, default=8192, help="tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of each contestant in a round")
    parser.add_argument("--seek", action="store_true", help="only the seek, here, as JSON")
    options = parser.parse_args(arguments)
    if options.seek:
        print(json.dumps(seek()))
        return 0
    compare(options.tokens, options.sequence_length, options.rounds, options.steps)
    report_seek()
    return 0


if __name__ == "__main__":
    sys.exit(main())
