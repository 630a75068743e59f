"""The device mesh: how many processes lie along each axis, and where this one lies."""

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llama_foundation.errors import ConfigError
from llama_train.config import DataConfig, LayoutConfig
from llama_train.data.batch_size import check_divides


@dataclass(frozen=True)
class Layout:
    """A resolved layout: sizes along the axes, whose product is the world size, and this process' place.

    The data axes are `data_replicate` × `data_shard`, in this order; `data_rank` counts along both.
    """

    data_replicate: int
    data_shard: int
    rank: int
    micro_batch_size: int

    @property
    def world_size(self) -> int:
        return self.data_replicate * self.data_shard

    @property
    def data_world(self) -> int:
        return self.data_replicate * self.data_shard

    @property
    def data_rank(self) -> int:
        return self.rank

    def data_mesh(self, device_type: str) -> DeviceMesh:
        """The mesh that FSDP2 shards over: (shard), or (replicate, shard) where there are replicas."""
        if self.data_replicate == 1:
            return init_device_mesh(device_type, (self.data_shard,), mesh_dim_names=("data_shard",))
        return init_device_mesh(
            device_type, (self.data_replicate, self.data_shard), mesh_dim_names=("data_replicate", "data_shard")
        )

    def describe(self) -> str:
        return f"data_replicate={self.data_replicate} data_shard={self.data_shard}"


def resolve_layout(config: LayoutConfig, data: DataConfig, world_size: int, rank: int = 0) -> Layout:
    """Fill in what the configuration leaves open and refuse what does not fit.

    Raises:
        ConfigError: an axis that this version does not run, sizes that do not multiply to the number of processes,
            or a batch that does not divide over data ranks and micro-batches.
    """
    for axis in ("pipeline", "context", "tensor"):
        if getattr(config, axis) != 1:
            raise ConfigError(f"layout.{axis}={getattr(config, axis)}: this version runs only layout.{axis}=1")
    shard = config.data_shard
    if shard == -1:
        shard = world_size // config.data_replicate
    if config.data_replicate * shard != world_size:
        raise ConfigError(
            f"layout.data_replicate={config.data_replicate} × layout.data_shard={config.data_shard} does not give "
            f"the {world_size} processes of this run; set layout.data_shard=-1 and a data_replicate that divides "
            f"{world_size}"
        )
    check_divides("data.batch_size", data.batch_size, world_size, config.micro_batch_size)
    for number, segment in enumerate(data.segments):
        if segment.batch_size is not None:
            setting = f"data.segments[{number}].batch_size"
            check_divides(setting, segment.batch_size, world_size, config.micro_batch_size)
    return Layout(config.data_replicate, shard, rank, config.micro_batch_size)
