"""Asynchronous tensor parallelism: the compiler cuts matrix multiplications so that their messages travel meanwhile."""

import torch
import torch.distributed as dist

from llama_foundation.errors import ConfigError
from llama_train.config import EngineConfig


def check_async_tensor_parallel(config: EngineConfig, device: str) -> None:
    """Refuse the overlap where there is nothing to do it.

    Args:
        device: `cluster.device`: auto, cpu or cuda.

    Raises:
        ConfigError: no CUDA device.
    """
    if config.async_tensor_parallel and (device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError(
            "engine.async_tensor_parallel=true needs CUDA devices that see each other's memory; "
            "use engine.async_tensor_parallel=false"
        )


def overlap_tensor_parallel(config: EngineConfig, group: dist.ProcessGroup | None) -> None:
    """Let the compiler fuse the collectives of `group` with the matrix multiplications next to them."""
    if not config.async_tensor_parallel or group is None:
        return
    import torch._inductor.config
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    torch._inductor.config._micro_pipeline_tp = True
    enable_symm_mem_for_group(group.group_name)
