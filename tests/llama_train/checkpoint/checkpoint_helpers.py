"""Made-up tensors, cut into rectangles in the ways that layouts cut them, and small worlds of gloo ranks."""

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from llama_train.engine.engine import Chunk

SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "weights/model.embed_tokens.weight": ((37, 12), torch.float32),
    "weights/model.layers.0.mlp.down_proj.weight": ((12, 29), torch.bfloat16),
    "weights/model.norm.weight": ((12,), torch.float32),
    "optimizer/exp_avg/model.embed_tokens.weight": ((37, 12), torch.float64),
    "optimizer/exp_avg/model.layers.0.mlp.down_proj.weight": ((12, 29), torch.float32),
    "optimizer/exp_avg/model.norm.weight": ((12,), torch.float32),
}


def whole_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, (shape, dtype) in SHAPES.items()
    }


def bounds(size: int, parts: int) -> list[int]:
    """Uneven on purpose, as FSDP2 is: ceil(size / parts) rows each, so that the last ranks may have none."""
    each = -(-size // parts)
    return [min(each * part, size) for part in range(parts + 1)]


def rank_chunks(rank: int, world: int, seed: int = 0, by: str = "mixed") -> Iterator[Chunk]:
    """Rank `rank`'s part: `rows`, `columns`, or `mixed` (columns for matrices with "down_proj" in their name).

    Vectors cut by columns are replicated, and the last rank owns them.
    """
    for name, tensor in whole_tensors(seed).items():
        columns = by == "columns" or (by == "mixed" and "down_proj" in name)
        if columns and tensor.dim() == 1:
            yield Chunk(name, tuple(tensor.shape), (0,), tensor, owner=rank == world - 1)
            continue
        axis = 1 if columns else 0
        cut = bounds(tensor.shape[axis], world)
        offsets = [0] * tensor.dim()
        offsets[axis] = cut[rank]
        part = tensor.narrow(axis, cut[rank], cut[rank + 1] - cut[rank])
        yield Chunk(name, tuple(tensor.shape), tuple(offsets), part)


def multiprocessing_context() -> Any:
    """Processes that are forked from a clean one which has imported torch once: safe, and not seconds each."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "llama_train.checkpoint.restore", "llama_train.checkpoint.store"])
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Call `function(rank, world, group, *arguments)` on `world` gloo processes; return what each returned, as text.

    What a rank raises is raised here, with the rank.
    """
    port = free_port()
    context = multiprocessing_context()
    results = context.Queue()
    processes = [
        context.Process(target=rank_main, args=(rank, world, port, results, function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found: dict[int, tuple[bool, str]] = {}
    try:
        for _ in processes:
            rank, good, text = results.get(timeout=90)
            found[rank] = (good, text)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    for rank, (good, text) in sorted(found.items()):
        assert good, f"rank {rank}:\n{text}"
    return [found[rank][1] for rank in range(world)]


def rank_main(rank: int, world: int, port: int, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
        text = str(function(rank, world, torch.distributed.group.WORLD, *arguments))
        results.put((rank, True, text))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
        raise


def flip_bit(path: Path, byte: int) -> None:
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 4]))
