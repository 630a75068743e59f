"""The machines."""

import re
from dataclasses import dataclass, field

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least, in_range
from llama_train.config.slurm import SlurmConfig

COMMUNICATION_VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "FI_EFA_FORK_SAFE",
    "FI_EFA_USE_DEVICE_RDMA",
    "FI_PROVIDER",
    "UCX_NET_DEVICES",
    "UCX_TLS",
)
"""What cluster.nccl may set besides NCCL_*, TORCH_NCCL_* and GLOO_*."""


@dataclass
class ClusterConfig:
    """The machines: what speed figures, device choice, communication and binding to cores need."""

    name: str = "auto"
    device: str = "auto"  # auto, cpu or cuda
    peak_tflops: float | None = None  # dense bf16 TFLOP/s per device, for MFU; null: looked up by device name
    nccl: dict[str, str] = field(default_factory=dict)  # environment of NCCL and Gloo, set before they start
    processes_per_node: int | None = None  # that share the fastest network; null: as many as the launcher started here
    numa_binding: bool = False  # each process on the cores next to its device; without devices, on cores of its own
    # For llama-plan only.
    accelerator: str | None = None  # a file of configs/accelerator/
    devices_per_node: int | None = None
    network_gb_per_second: float | None = None  # of one device to other nodes, one direction
    interface: str | None = None  # network interface that the processes meet on, as ip(8) names it; null: the host's
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def check(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"cluster.device={self.device}; use auto, cpu or cuda")
        if self.processes_per_node is not None:
            at_least("cluster.processes_per_node", self.processes_per_node, 1)
        if self.devices_per_node is not None:
            at_least("cluster.devices_per_node", self.devices_per_node, 1)
        if self.network_gb_per_second is not None:
            in_range("cluster.network_gb_per_second", self.network_gb_per_second, 1e-3, 1e5)
        if self.interface is not None and not re.fullmatch(r"[\w.:@-]{1,15}", self.interface):
            raise ConfigError(f"cluster.interface={self.interface!r} is no name of a network interface; see: ip link")
        self.slurm.check()
        for name, value in self.nccl.items():
            if not re.fullmatch(r"(NCCL|TORCH_NCCL|GLOO)_[A-Z0-9_]+", name) and name not in COMMUNICATION_VARIABLES:
                raise ConfigError(
                    f"cluster.nccl.{name}: only names that begin with NCCL_, TORCH_NCCL_ or GLOO_, and "
                    f"{', '.join(COMMUNICATION_VARIABLES)} can be set here; set others where the job is started"
                )
            if name.startswith("NCCL_") and value in ("True", "False"):
                raise ConfigError(
                    f"cluster.nccl.{name}={value}: NCCL's switches are numbers; use {int(value == 'True')}"
                )
            if "\0" in value or "\n" in value:
                raise ConfigError(f"cluster.nccl.{name}={value!r} must be one line of text")
