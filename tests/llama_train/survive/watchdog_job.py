"""One rank of a small job in which rank 1 may go wrong in step 5."""

import datetime
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from llama_foundation.errors import UserError
from llama_train.survive.watchdog import Watchdog


def run_rank(rank: int, world: int, directory: Path, fault: str, deadline: float) -> None:
    """Run steps until something happens; never returns.

    Args:
        fault: "hang in data", "hang in compute", "error", "later" (goes on until killed), "later, each for itself" or
            "none".
    """
    stderr = os.open(directory / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 2)
    try:
        store = _store(rank, world, directory / "port")
        _join(rank, world, store)
        with Watchdog(rank, world, store, deadline, f"host{rank}", directory) as watchdog:
            _loop(watchdog, directory, fault)
            if fault == "none":
                dist.barrier()
    except UserError as error:
        os.write(2, f"error: {error}\n".encode())
        os._exit(error.exit_code)
    except Exception as error:
        os.write(2, f"failed: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def sleep_for_ever() -> None:
    while True:
        time.sleep(0.1)


def _loop(watchdog: Watchdog, directory: Path, fault: str) -> None:
    for step in range(1, sys.maxsize):
        culprit = watchdog.rank == 1 and step == 5
        watchdog.beat(step, "data")
        time.sleep(0.05)
        if fault == "hang in data" and culprit:
            sleep_for_ever()
        if fault == "error" and culprit:
            raise ValueError("shard-00003.bin is broken")
        watchdog.beat(step, "compute")
        if fault == "hang in compute" and culprit:
            sleep_for_ever()
        if fault != "later, each for itself":
            dist.all_reduce(torch.ones(1))
        if step == 4:
            (directory / f"ready-{watchdog.rank}").touch()
        if fault == "none" and step == 5:
            break


def _store(rank: int, world: int, port_file: Path) -> dist.TCPStore:
    timeout = datetime.timedelta(seconds=60)
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, timeout=timeout, wait_for_workers=False)
        port_file.with_suffix(".new").write_text(str(store.port))
        port_file.with_suffix(".new").rename(port_file)
        return store
    while not port_file.exists():
        time.sleep(0.05)
    return dist.TCPStore("127.0.0.1", int(port_file.read_text()), world, timeout=timeout, wait_for_workers=False)


def _join(rank: int, world: int, store: dist.Store) -> None:
    group = dist.PrefixStore("group", store)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=group, rank=rank, world_size=world, timeout=timeout)
