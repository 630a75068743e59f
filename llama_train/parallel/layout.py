"""The device mesh: how many processes lie along each axis, and where this one lies.

Ranks count along the tensor axis fastest and along the pipeline axis slowest, so that the processes that talk most
are next to each other on a node:

    rank = (((pipeline · data_replicate + replicate) · data_shard + shard) · context + context_rank) · tensor + ...
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from llama_train.config import EngineConfig, LayoutConfig, ModelConfig, Precision

if TYPE_CHECKING:  # a plan resolves layouts without torch, whose import takes a second or two
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pipeline", "data_replicate", "data_shard", "context", "tensor")
"""From the slowest to the fastest."""


@dataclass(frozen=True)
class Layout:
    """A resolved layout: sizes along the axes, whose product is the world size, and this process' place."""

    data_replicate: int
    data_shard: int
    rank: int
    micro_batch_size: int
    pipeline: int = 1
    context: int = 1
    tensor: int = 1
    config: LayoutConfig = field(default_factory=LayoutConfig)  # schedules and methods, which are no sizes

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def world_size(self) -> int:
        return math.prod(self.sizes)

    @property
    def place(self) -> dict[str, int]:
        """This process' index along each axis."""
        places, rest = {}, self.rank
        for axis in reversed(AXES):
            rest, places[axis] = divmod(rest, getattr(self, axis))
        return places

    @property
    def data_world(self) -> int:
        """How many ranks read different rows of a batch."""
        return self.data_replicate * self.data_shard

    @property
    def data_rank(self) -> int:
        place = self.place
        return place["data_replicate"] * self.data_shard + place["data_shard"]

    @property
    def counts_tokens(self) -> bool:
        """Whether the rows of this rank are counted here, and not on another rank that computes them too."""
        place = self.place
        return place["pipeline"] == place["context"] == place["tensor"] == 0

    @property
    def shard_world(self) -> int:
        """How many ranks FSDP2 cuts a weight into: those of context see other tokens, so they share the weights too."""
        return self.data_shard * self.context

    def members(self, *axes: str) -> list[int]:
        """Return the ranks that differ from this one along `axes` only, ascending; this one is among them."""
        place = self.place
        ranges = [range(getattr(self, axis)) if axis in axes else [place[axis]] for axis in AXES]
        return [self._rank(coordinates) for coordinates in itertools.product(*ranges)]

    def describe(self) -> str:
        """Return the axes that are used, as settings."""
        used = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " ".join(used) or f"data_shard={self.data_shard}"

    def _rank(self, coordinates: tuple[int, ...]) -> int:
        rank = 0
        for size, coordinate in zip(self.sizes, coordinates, strict=True):
            rank = rank * size + coordinate
        return rank


def uses_fsdp(config: EngineConfig, layout: Layout) -> bool:
    """Whether there is something to cut, or bf16 copies of fp32 weights to make, or weights in host memory."""
    return layout.shard_world * layout.data_replicate > 1 or config.precision is Precision.bf16 or config.offload


def replicates_kv(model: ModelConfig, layout: Layout) -> bool:
    """Whether every tensor rank keeps all of K and V's weights, because there are fewer KV heads than ranks."""
    return layout.tensor > model.kv_heads


@dataclass(frozen=True)
class Groups:
    """The process groups of this rank along the axes; None where an axis has one rank."""

    pipeline: dist.ProcessGroup | None
    context: dist.ProcessGroup | None
    tensor: dist.ProcessGroup | None
    ends: dist.ProcessGroup | None  # first and last pipeline rank, where they share the embedding's weight
    shard_mesh: DeviceMesh  # (shard), or (replicate, shard) where there are replicas: what FSDP2 works over


def make_groups(layout: Layout, device: torch.device, timeout_seconds: float, tied_embeddings: bool) -> Groups:
    """Create the groups that this rank is in; every rank calls it, and only members of a group meet for it.

    A DeviceMesh made by `init_device_mesh` would forget the timeout (torch 2.13), and create every group of the world
    on every rank.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    timeout = timedelta(seconds=timeout_seconds)

    def group(*axes: str, ends: bool = False) -> dist.ProcessGroup | None:
        ranks = layout.members(*axes)
        if ends:
            ranks = [ranks[0], ranks[-1]]
            if layout.rank not in ranks and ranks[0] != ranks[1]:
                # torch puts the number of a process' groups into their names, so all ranks must have as many.
                dist.new_group([layout.rank], timeout=timeout, use_local_synchronization=True)
                return None
        if len(set(ranks)) == 1:
            return None
        return dist.new_group(ranks, timeout=timeout, use_local_synchronization=True)

    shard = _group_or_self(layout, ("data_shard", "context"), timeout)
    if layout.data_replicate == 1:
        mesh = DeviceMesh.from_group(shard, device.type, mesh_dim_names=("shard",))
    else:
        replicate = _group_or_self(layout, ("data_replicate",), timeout)
        ranks = torch.tensor(layout.members("data_replicate", "data_shard", "context")).view(layout.data_replicate, -1)
        mesh = DeviceMesh.from_group([replicate, shard], device.type, ranks, mesh_dim_names=("replicate", "shard"))
    return Groups(
        pipeline=group("pipeline"),
        context=group("context"),
        tensor=group("tensor"),
        ends=group("pipeline", ends=True) if tied_embeddings else None,
        shard_mesh=mesh,
    )


def make_request_group(layout: Layout, timeout_seconds: float) -> dist.ProcessGroup | None:
    """Create the CPU group of the ranks that answer different requests: those that differ along the data axes only.

    Ranks that differ in pipeline, context or tensor compute the same requests together.
    """
    import torch.distributed as dist

    ranks = layout.members("data_replicate", "data_shard")
    if len(ranks) == 1:
        return None
    timeout = timedelta(seconds=timeout_seconds)
    return dist.new_group(ranks, timeout=timeout, backend="gloo", use_local_synchronization=True)


def _group_or_self(layout: Layout, axes: tuple[str, ...], timeout: timedelta) -> dist.ProcessGroup:
    import torch.distributed as dist

    return dist.new_group(layout.members(*axes), timeout=timeout, use_local_synchronization=True)
