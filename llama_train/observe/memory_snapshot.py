"""Every allocation of CUDA memory within single steps, for https://docs.pytorch.org/memory_viz."""

import os
from pathlib import Path

import torch

MOST_EVENTS = 100_000
"""Allocations and frees that are kept, the newest ones; it bounds the file to some tens of megabytes."""


def start_recording() -> None:
    """Keep the history of allocations from here on, with the Python lines that asked for them."""
    torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS, stacks="python")


def stop_recording() -> None:
    """Forget the history and keep none."""
    torch.cuda.memory._record_memory_history(enabled=None)


def write_snapshot(directory: Path, step: int, rank: int) -> str:
    """Write what was recorded as `directory/step-N.rank-R.pickle`, stop recording, return a line about it.

    The format is the viewer's; nothing here ever reads it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:08d}.rank-{rank}.pickle"
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        torch.cuda.memory._dump_snapshot(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        stop_recording()
    return f"memory snapshot in {path}"
