"""Memory that is free goes back to the system at chosen steps."""

import ctypes
from pathlib import Path

from llama_train.survive.garbage import GarbageCollection

BLOCKS, BLOCK = 1_000, 100_000  # below glibc's threshold for blocks that go back by themselves


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_freed_memory_below_a_block_in_use_goes_back_at_the_twentieth_step():
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    blocks = [library.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    above = library.malloc(BLOCK)  # so that the heap cannot simply become shorter
    held = resident()
    for block in blocks:
        library.free(block)
    garbage = GarbageCollection(0, tensors_on_cpu=True)
    garbage.step_done(19)
    assert resident() > held - BLOCKS * BLOCK / 10
    garbage.step_done(20)
    assert resident() < held - BLOCKS * BLOCK * 0.9
    library.free(above)
