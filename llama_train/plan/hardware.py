"""The machines that a plan is for: configs/accelerator/ and the network of configs/cluster/."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import yaml

from llama_foundation.compose import CONFIGS
from llama_foundation.errors import ConfigError
from llama_train.config import ClusterConfig

ACCELERATORS = CONFIGS / "accelerator"


@dataclass(frozen=True)
class Accelerator:
    """One kind of device. Speeds are the datasheet's for one direction; efficiencies are what training reaches."""

    name: str
    memory_gib: float
    bf16_tflops: float  # dense
    memory_tb_per_second: float
    link_gb_per_second: float  # to the other devices of its node, one direction
    watts: float
    matmul_efficiency: float  # of bf16_tflops, of a large product
    attention_efficiency: float  # of bf16_tflops, forward, of the operations that causality leaves


@dataclass(frozen=True)
class Hardware:
    """An accelerator in its cluster, in base units: bytes, seconds, operations."""

    accelerator: Accelerator
    devices_per_node: int
    network: float  # bytes per second of a device to other nodes, one direction

    @property
    def flops(self) -> float:
        return self.accelerator.bf16_tflops * 1e12

    @property
    def bandwidth(self) -> float:
        return self.accelerator.memory_tb_per_second * 1e12

    @property
    def link(self) -> float:
        return self.accelerator.link_gb_per_second * 1e9

    @property
    def memory(self) -> float:
        return self.accelerator.memory_gib * 2**30

    @property
    def matmul_efficiency(self) -> float:
        return self.accelerator.matmul_efficiency

    @property
    def attention_efficiency(self) -> float:
        return self.accelerator.attention_efficiency


def known_accelerators() -> list[str]:
    """Return the names of the files in configs/accelerator/."""
    return sorted(path.stem for path in ACCELERATORS.glob("*.yaml"))


def read_accelerator(name: str, folder: Path = ACCELERATORS) -> Accelerator:
    """Read `configs/accelerator/<name>.yaml`.

    Raises:
        ConfigError: there is no such file, or it lacks a figure or has one that is no number above 0.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in folder.glob("*.yaml"))
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"cluster.accelerator={name} is not known; {hint}Known: {', '.join(known)}. To add one, copy one of "
            f"{folder} to {name}.yaml and put in the datasheet's figures"
        )
    try:
        figures = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    wanted = [field for field in Accelerator.__dataclass_fields__ if field != "name"]
    if not isinstance(figures, dict) or set(figures) != set(wanted):
        raise ConfigError(f"{path}: must have exactly the figures {', '.join(wanted)}")
    for key, value in figures.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise ConfigError(f"{path}: {key}={str(value)[:80]} must be a number above 0")
    return Accelerator(name, **{key: float(value) for key, value in figures.items()})


def hardware_of(cluster: ClusterConfig) -> Hardware:
    """Return the machines of a cluster configuration.

    Raises:
        ConfigError: it does not say which accelerator and network it has.
    """
    if cluster.accelerator is None:
        raise ConfigError(
            f"cluster={cluster.name} has no cluster.accelerator; a plan needs one of "
            f"{', '.join(known_accelerators())}: use cluster=a100x8 or cluster=h100x8, or set cluster.accelerator"
        )
    accelerator = read_accelerator(cluster.accelerator)
    per_node = cluster.devices_per_node
    if per_node is None:
        raise ConfigError("cluster.devices_per_node=null: a plan needs the number of devices in a node; set it")
    if cluster.network_gb_per_second is None and per_node:
        raise ConfigError(
            "cluster.network_gb_per_second=null: a plan needs the speed of a device's network adapter in GB/s, one "
            "direction (50 for 400 Gbit/s); set it"
        )
    return Hardware(accelerator, per_node, cluster.network_gb_per_second * 1e9)
