"""Faults of DeepSpeed that are mended from outside, one function each. Versions named are those where it was seen."""

import importlib
import logging
import os
import warnings
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch.distributed as dist


def import_deepspeed(device_type: str, local_rank: int) -> ModuleType:
    """Import DeepSpeed for "cpu" or "cuda"; it reads both arguments from the environment."""
    os.environ["DS_ACCELERATOR"] = device_type
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    no_deprecations()
    no_compilation_at_start(deepspeed)
    return deepspeed


def no_compilation_at_start(deepspeed: ModuleType) -> None:
    """Keep DeepSpeed 0.19.8 from compiling `deepspeed_shm_comm` on the CPU when it starts to communicate.

    That takes two minutes and needs ninja and a C++ compiler, even where the result is cached, for a faster all-reduce
    inside of one machine. Marked as one that cannot be built, it is left out and torch.distributed does the work.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def no_deprecations() -> None:
    """Keep torch 2.13 from warning, in every step, of the names by which DeepSpeed 0.19.8 calls its collectives."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def groups_wait_no_longer(seconds: float) -> None:
    """Let the process groups that DeepSpeed 0.19.8 makes wait for other ranks as long as those of the run.

    It makes them with torch's default of 30 minutes: so long would a rank wait for another one that has died, and as
    long in every collective. DeepSpeed must have been imported.
    """

    def new_group(backend: Any, ranks: list[int]) -> dist.ProcessGroup | None:
        return dist.new_group(ranks, timeout=timedelta(seconds=seconds))

    importlib.import_module("deepspeed.comm.torch").TorchBackend.new_group = new_group
