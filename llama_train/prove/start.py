"""Starts a process of a proof with its output in a file; torch is imported only in that process."""

import os
import sys
from pathlib import Path


def log_file(place: Path, rank: int) -> Path:
    """Return where a rank's output goes."""
    return place / f"rank-{rank}.log"


def run_worker(place: Path, rank: int, world: int) -> None:
    """Be rank `rank` of `world` in the stretch described in `place`."""
    log = os.open(log_file(place, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    from llama_train.prove.worker import train_stretch

    train_stretch(place)
