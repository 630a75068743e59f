"""Small gloo worlds: a function run on every rank, in processes forked from a server that has loaded torch."""

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch._dynamo",  # what building an optimizer imports
    "llama_train.parallel.pipeline",
    "tests.llama_train.parallel.engine_job",
]


CRASHES = (-signal.SIGABRT, -signal.SIGSEGV)


def in_world(function: Callable[..., Any], size: int, *arguments: Any, seconds: float = 280) -> list[Any]:
    """Return what `function(rank, *arguments)` returns on each of `size` ranks.

    A world in which the interpreter of a rank crashed is begun once more, with a warning and the crash's stacks on
    standard error: seen once with torch 2.13 on gloo ("free(): invalid pointer"), not again in nine runs of the same
    tests; the cause is not known.
    """
    codes: list[int | None] = []
    try:
        return _once(function, size, arguments, seconds, codes)
    except (AssertionError, EOFError) as error:
        if not set(codes) & set(CRASHES):
            raise
        warnings.warn(f"a rank crashed ({codes}), the world is begun once more: {error}", stacklevel=2)
        return _once(function, size, arguments, seconds, codes)


def _once(
    function: Callable[..., Any], size: int, arguments: tuple[Any, ...], seconds: float, codes: list[int | None]
) -> list[Any]:
    """Do it; leave the exit codes of ranks that had ended by themselves in `codes` when one fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as directory:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(target=_be_rank, args=(pipes[rank][1], rank, size, directory, seconds, function, arguments))
            for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            deadline = time.monotonic() + seconds
            answers = {}
            waiting = {reader: rank for rank, (reader, _) in enumerate(pipes)}
            while waiting:
                ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
                assert ready, f"ranks {sorted(waiting.values())} say nothing in {seconds} s"
                for reader in ready:
                    rank = waiting.pop(reader)
                    good, answers[rank] = reader.recv()
                    assert good, f"rank {rank}: {answers[rank]}"
            return [answers[rank] for rank in range(size)]
        except BaseException:
            wait([process.sentinel for process in processes], 1)  # one that crashed may take a moment to be gone
            codes[:] = [process.exitcode for process in processes]
            raise
        finally:
            for process in processes:
                process.kill()
                process.join()


def _be_rank(
    pipe: Connection,
    rank: int,
    size: int,
    directory: str,
    seconds: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    faulthandler.enable()  # a rank that crashes says where
    faulthandler.dump_traceback_later(seconds, exit=True)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    store = dist.FileStore(str(Path(directory) / "meeting"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))
    try:
        pipe.send((True, function(rank, *arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    time.sleep(seconds)  # until killed: others may still talk to this one
