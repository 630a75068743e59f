"""Breaking a run on purpose, to see that it survives. Off unless `fault.*` is set, and loud when it is.

Each fault happens once in the life of a run: a file in RUN/faults says that it has, so that the restarted run does not
meet it again. `slow` is the exception: a slow machine stays slow.
"""

import contextlib
import errno
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llama_foundation.errors import ConfigError
from llama_train.checkpoint import store as checkpoint_store
from llama_train.checkpoint.local import LocalTier
from llama_train.checkpoint.store import CheckpointStore
from llama_train.engine.engine import Chunk, Engine
from llama_train.survive.fault_plan import AFTER_A_CHECKPOINT, Fault, parse_faults

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Faults:
    """The faults of this rank, carried out by the training loop.

    Args:
        settings: `config.fault`.
        directory: of the run.

    Raises:
        ConfigError: a fault is for a rank that does not exist.
    """

    def __init__(self, settings: dict[str, str], rank: int, world: int, directory: Path) -> None:
        plan = parse_faults(settings)
        for fault in plan:
            if fault.rank >= world:
                raise ConfigError(f"fault.{fault}: this run has the ranks 0 to {world - 1}")
        self._marks = directory / "faults"
        self._plan = [fault for fault in plan if fault.rank == rank]
        self._always = [fault for fault in self._plan if fault.kind == "slow"]
        self._open = [fault for fault in self._plan if fault.kind != "slow" and not self._mark(fault).exists()]
        self.warning = "FAULTS ARE INJECTED INTO THIS RUN: " + ", ".join(map(str, plan)) if plan else None

    def begin(self, step: int, engine: Engine) -> None:
        """Before the step `step`, counted from 1."""
        for fault in self._always:
            if step >= fault.step:
                assert fault.value is not None
                if step == fault.step:
                    self._tell(fault)
                time.sleep(fault.value)
        for fault in self._due(step, _BEFORE):
            _BEFORE[fault.kind](fault, engine)

    def looks(self, step: int, looks: dict[str, Callable[..., None]]) -> dict[str, Callable[..., None]]:
        """Return `looks`, what `Engine.step` is to show, with a hand in the gradients where this step wants it."""
        if not self._due(step, ("nan_gradient",)):
            return looks
        look = looks.get("look_at_gradients")

        def broken(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
            done = False
            for chunk in chunks:
                if not done and chunk.tensor.numel():
                    chunk.tensor.view(-1)[0] = torch.nan
                    done = True
                yield chunk

        def break_gradients(chunks: Iterator[Chunk]) -> None:
            if look is not None:
                look(broken(chunks))
            else:
                deque(broken(chunks), maxlen=0)

        return {**looks, "look_at_gradients": break_gradients}

    @contextlib.contextmanager
    def saving(self, step: int, store: CheckpointStore | LocalTier) -> Iterator[None]:
        """Around the checkpoint that is written after step `step`."""
        due = self._due(step, AFTER_A_CHECKPOINT, later=True)
        if any(fault.kind == "disk_full" for fault in due):
            with _no_room():
                yield
                store.wait()
            return
        yield
        if due:
            store.wait()
        for fault in due:
            path = store.file(step, fault.rank)
            if fault.kind == "torn_checkpoint":
                os.truncate(path, path.stat().st_size // 2)
            else:
                path.unlink()

    def _due(self, step: int, kinds: Any, later: bool = False) -> list[Fault]:
        """Take the faults of `kinds` that happen now off the list, and say so."""
        due = [f for f in self._open if f.kind in kinds and (f.step == step or (later and f.step < step))]
        for fault in due:
            self._open.remove(fault)
            self._tell(fault)
        return due

    def _tell(self, fault: Fault) -> None:
        """Leave the mark first: a process that kills itself says nothing more."""
        self._marks.mkdir(parents=True, exist_ok=True)
        self._mark(fault).write_text(f"{time.time()}\n")
        print(f"fault injected: {fault} (process {os.getpid()})", file=sys.stderr, flush=True)

    def _mark(self, fault: Fault) -> Path:
        return self._marks / str(fault).replace("=", "-")


def _kill(fault: Fault, engine: Engine) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(fault: Fault, engine: Engine) -> None:
    while True:
        time.sleep(1)


@torch.no_grad()
def _bit_flip(fault: Fault, engine: Engine) -> None:
    assert fault.value is not None
    weights = next(chunk.tensor for chunk in engine.chunks(optimizer=False) if chunk.tensor.numel())
    bits = weights.view(-1)[:1].view(_INTEGERS[weights.element_size()])
    if fault.value >= 8 * weights.element_size():
        raise ConfigError(f"fault.{fault}: these weights have the bits 0 to {8 * weights.element_size() - 1}")
    highest = 8 * weights.element_size() - 1
    bits ^= -(2**highest) if fault.value == highest else 2 ** int(fault.value)


def _sigterm_storm(fault: Fault, engine: Engine) -> None:
    assert fault.value is not None
    for _ in range(int(fault.value)):
        os.kill(os.getpid(), signal.SIGTERM)


def _clock_jump(fault: Fault, engine: Engine) -> None:
    """For this process only: setting the machine's clock takes its administrator."""
    clock, seconds = time.time, fault.value
    assert seconds is not None
    time.time = lambda: clock() + seconds


_BEFORE: dict[str, Callable[[Fault, Engine], None]] = {
    "kill": _kill,
    "hang": _hang,
    "bit_flip": _bit_flip,
    "sigterm_storm": _sigterm_storm,
    "clock_jump": _clock_jump,
}


@contextlib.contextmanager
def _no_room() -> Iterator[None]:
    """While open, what a checkpoint writes is refused as by a full disk."""
    write = checkpoint_store._write

    def refuse(file: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint_store._write = refuse
    try:
        yield
    finally:
        checkpoint_store._write = write
