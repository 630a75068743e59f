"""Faults of DeepSpeed that are mended from outside, one function each. Versions named are those where it was seen."""

import importlib
import logging
import os
from types import ModuleType


def import_deepspeed(device_type: str, local_rank: int) -> ModuleType:
    """Import DeepSpeed for "cpu" or "cuda"; it reads both arguments from the environment."""
    os.environ["DS_ACCELERATOR"] = device_type
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    no_compilation_at_start(deepspeed)
    return deepspeed


def no_compilation_at_start(deepspeed: ModuleType) -> None:
    """Keep DeepSpeed 0.19.8 from compiling `deepspeed_shm_comm` on the CPU when it starts to communicate.

    That takes two minutes and needs ninja and a C++ compiler, even where the result is cached, for a faster all-reduce
    inside of one machine. Marked as one that cannot be built, it is left out and torch.distributed does the work.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
