"""Bytes between ranks, without pickle; over no group, between nobody."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

from llama_foundation.errors import CheckpointError

Group = torch.distributed.ProcessGroup | None
"""A gloo group, or None for a single process."""

Answer = tuple[dict[str, Any], bytes]
"""What rank 0 found out: a small JSON message, and bytes where there are many."""


def group_rank(group: Group) -> int:
    """Return this process's rank in `group`."""
    return 0 if group is None else torch.distributed.get_rank(group)


def gather_bytes(payload: bytes, group: Group) -> list[bytes]:
    """Return every rank's `payload` on rank 0 of the group, and an empty list elsewhere."""
    if group is None:
        return [payload]
    world = torch.distributed.get_world_size(group)
    sizes = torch.empty(world, dtype=torch.int64)
    torch.distributed.all_gather(list(sizes.split(1)), torch.tensor([len(payload)]), group=group)
    longest = int(sizes.max())
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(payload)] = _as_tensor(payload)
    first = group_rank(group) == 0
    parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(world)] if first else None
    torch.distributed.gather(padded, parts, dst=torch.distributed.get_global_rank(group, 0), group=group)
    return [part[:size].numpy().tobytes() for part, size in zip(parts or [], sizes.tolist(), strict=False)]


def gather_everywhere(text: str | None, group: Group) -> list[str | None]:
    """Return every rank's `text` on every rank."""
    parts = [json.loads(part) for part in gather_bytes(json.dumps(text).encode(), group)]
    return json.loads(broadcast_bytes(json.dumps(parts).encode(), group))


def broadcast_bytes(payload: bytes | None, group: Group) -> bytes:
    """Return rank 0's `payload` on every rank of the group."""
    if group is None:
        assert payload is not None
        return payload
    first = group_rank(group) == 0
    source = torch.distributed.get_global_rank(group, 0)
    size = torch.tensor([len(payload) if first else 0])
    torch.distributed.broadcast(size, src=source, group=group)
    data = _as_tensor(payload) if first else torch.empty(int(size), dtype=torch.uint8)
    if int(size):
        torch.distributed.broadcast(data, src=source, group=group)
    return data.numpy().tobytes()


def asked_together(ask: Callable[[], Answer], group: Group) -> Answer:
    """Call `ask` on rank 0; return its answer, or raise its CheckpointError, on every rank."""
    message: dict[str, Any] = {}
    data = b""
    if group_rank(group) == 0:
        try:
            message, data = ask()
        except CheckpointError as error:
            message = {"error": str(error)}
        except OSError as error:
            message = {"error": f"{error.filename}: {error.strerror}"}
    head, _, data = broadcast_bytes(json.dumps(message).encode() + b"\n" + data, group).partition(b"\n")
    message = json.loads(head)
    if "error" in message:
        raise CheckpointError(message["error"])
    return message, data


def _as_tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
