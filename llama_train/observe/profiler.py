"""A trace of single steps by torch's profiler, and in a few lines what their time went into."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llama_foundation.files import publish_text

KINDS: dict[str, tuple[str, ...]] = {
    "communication": ("nccl", "gloo", "c10d", "all_gather", "allgather", "reduce_scatter", "all_reduce", "allreduce"),
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "loss": ("log_softmax", "logsoftmax", "nll_loss", "cross_entropy"),
    "optimizer": ("adam",),
    "matrix products": (
        "gemm",
        "gemv",
        "nvjet",
        "cutlass",
        "xmma",
        "cublas",
        "scaled_mm",
        "aten::mm",
        "aten::bmm",
        "aten::addmm",
    ),
    "copies": ("memcpy", "memset", "copy", "aten::cat", "catarray", "chunk_cat"),
}
"""Parts of the names of kernels and operations; the first kind that has one counts. The rest is norms, rotations and
other elementwise work."""

ELEMENTWISE, IDLE, LOSS = "elementwise and other", "gaps", "loss"
LOSS_FUNCTIONS = ("_ChunkedLoss", "_Loss")
"""Autograd functions whose elementwise work is the loss's (model/loss.py, parallel/vocabulary.py)."""
TABLE_ROWS = 40
TRACE_BYTES = 256 * 2**20
"""A compressed trace that is larger is thrown away: no viewer opens it. The table stays."""


@dataclass(frozen=True)
class StepProfile:
    """Where the wall time of one step went. The seconds of all kinds, `IDLE` among them, sum to `seconds` at least;
    to more where kernels ran side by side."""

    seconds: float
    by_kind: dict[str, float]
    operations: str  # the profiler's own table of the longest operations

    def table(self, heading: str) -> str:
        lines = [heading, f"{self.seconds:.4f} s of wall time", "", f"{'':<24}{'seconds':>10}{'share':>9}"]
        for kind, seconds in sorted(self.by_kind.items(), key=lambda item: -item[1]):
            lines.append(f"{kind:<24}{seconds:>10.4f}{seconds / self.seconds:>9.1%}")
        return "\n".join([*lines, "", self.operations, ""])


class StepProfiler:
    """Profiles what happens between `start` and `stop`.

    Args:
        device: a CUDA device: its kernels are traced and their times counted; else those of operations on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profile: profile | None = None
        self._running = False
        self._started = 0.0

    def start(self) -> None:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
        self._profile = profile(activities=activities)
        self._profile.start()
        self._running = True
        self._started = time.perf_counter()

    def stop(self) -> StepProfile:
        """End and sum up; the trace stays for `write_trace` until the next start."""
        assert self._profile is not None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - self._started
        self._profile.stop()
        self._running = False
        averages = self._profile.key_averages()
        column = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        operations = averages.table(sort_by=column, row_limit=TABLE_ROWS, max_name_column_width=72)
        busy, by_kind = self._device_time() if self._device.type == "cuda" else self._processor_time(averages)
        loss = self._elementwise_of_the_loss()
        by_kind[LOSS] = by_kind.get(LOSS, 0.0) + loss
        by_kind[ELEMENTWISE] = by_kind.get(ELEMENTWISE, 0.0) - loss
        return StepProfile(seconds, by_kind | {IDLE: max(0.0, seconds - busy)}, operations)

    def write_trace(self, path: Path) -> bool:
        """Write the Chrome trace, gzip-compressed; say whether it was small enough to keep."""
        assert self._profile is not None and path.name.endswith(".json.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
        try:
            self._profile.export_chrome_trace(str(partial))
            small = partial.stat().st_size <= TRACE_BYTES
            if small:
                os.replace(partial, path)
            return small
        finally:
            partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop without a result, if it runs."""
        if self._profile is not None and self._running:
            with contextlib.suppress(Exception):  # what ended the step is what people should hear of
                self._profile.stop()
        self._profile, self._running = None, False

    def _processor_time(self, averages: list) -> tuple[float, dict[str, float]]:
        by_kind: dict[str, float] = {}
        for average in averages:
            kind = kind_of(average.key)
            by_kind[kind] = by_kind.get(kind, 0.0) + average.self_cpu_time_total * 1e-6
        return sum(by_kind.values()), by_kind

    def _elementwise_of_the_loss(self) -> float:
        """Return the seconds of elementwise work, by its name no different from other, that the loss asked for."""
        assert self._profile is not None
        microseconds = 0.0
        for event in self._profile.events() or ():
            if not _below(event, LOSS_FUNCTIONS):
                continue
            if self._device.type == "cuda":
                microseconds += sum(each.duration for each in event.kernels if kind_of(each.name) == ELEMENTWISE)
            elif kind_of(event.name) == ELEMENTWISE:
                microseconds += event.self_cpu_time_total
        return microseconds * 1e-6

    def _device_time(self) -> tuple[float, dict[str, float]]:
        assert self._profile is not None
        by_kind: dict[str, float] = {}
        spans = []
        for event in self._profile.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                kind = kind_of(event.name)
                by_kind[kind] = by_kind.get(kind, 0.0) + (event.time_range.end - event.time_range.start) * 1e-6
                spans.append((event.time_range.start, event.time_range.end))
        return covered(spans) * 1e-6, by_kind


def _below(event: Any, names: tuple[str, ...]) -> bool:
    """Return whether `event` of the profiler, or one that it is a part of, has one of the names."""
    while event is not None:
        if event.name in names:
            return True
        event = event.cpu_parent
    return False


def kind_of(name: str) -> str:
    """Return the kind of work that a kernel or operation of this name does."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), ELEMENTWISE)


def covered(spans: list[tuple[float, float]]) -> float:
    """Return how much of a line the spans (start, end) cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def write_profile(profiler: StepProfiler, directory: Path, step: int, rank: int) -> str:
    """Stop `profiler` and write `directory/step-N/rank-R.{txt,trace.json.gz}`; return a line about it."""
    result = profiler.stop()
    folder = directory / f"step-{step:08d}"
    publish_text(folder / f"rank-{rank}.txt", result.table(f"step {step}, rank {rank}"))
    path = folder / f"rank-{rank}.trace.json.gz"
    if not profiler.write_trace(path):
        return f"profiled into {folder}; the trace was left out, it was larger than {TRACE_BYTES >> 20} MiB"
    return f"profiled into {folder}; the times of this step have it in them"
