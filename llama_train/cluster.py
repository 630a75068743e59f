"""What a process does for the machine it runs on, before it meets the others: environment and cores."""

import os
import sys
from pathlib import Path

from llama_foundation.errors import RunError
from llama_train.config import ClusterConfig

SYSTEM = Path("/sys")


def prepare(config: ClusterConfig, system: Path = SYSTEM) -> list[str]:
    """Set the environment of the communication libraries and bind this process to its cores.

    NCCL and Gloo read their environment when the process groups start, so this comes first.

    Args:
        system: the root of sysfs.

    Returns:
        One line for everything that was done, for people to read.
    """
    lines = set_environment(config.nccl)
    if config.numa_binding:
        lines.append(bind(config.device, system))
    return lines


def set_environment(variables: dict[str, str]) -> list[str]:
    """Put `variables` into the environment; a value that was there before gives way, and is named."""
    lines = []
    for name, value in variables.items():
        before = os.environ.get(name)
        instead = f", instead of {before} from the environment" if before not in (None, value) else ""
        lines.append(f"cluster.nccl: {name}={value}{instead}")
        os.environ[name] = value
    return lines


def bind(device: str, system: Path = SYSTEM) -> str:
    """Let all threads of this process run only on its own cores; memory touched first from there is theirs, too.

    A process with a CUDA device gets the cores of the NUMA node that the device hangs on, as far as it may use them.
    Without CUDA the cores are split evenly among the processes of this machine. Where the machine does not say, nothing
    is bound, and the line says so, on standard error as well if this is not rank 0.

    Args:
        device: `cluster.device`.

    Returns:
        One line for people to read.
    """
    rank, local_rank = os.environ.get("RANK", "0"), int(os.environ.get("LOCAL_RANK", "0"))
    try:
        if not hasattr(os, "sched_setaffinity"):
            raise RunError(f"{sys.platform} does not bind processes to cores")
        allowed = os.sched_getaffinity(0)
        address = None if device == "cpu" else device_address(local_rank)
        if address is None:
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
            cores = share_of_cores(allowed, local_rank, local_size, system)
            place = f"share {local_rank + 1} of {local_size} of this machine's cores"
        else:
            node = numa_node(address, system)
            cores = cores_of_node(node, system) & allowed
            place = f"NUMA node {node} of device {address}"
            if not cores:
                raise RunError(f"none of the cores of {place} may be used by this process")
        for thread in os.listdir("/proc/self/task"):  # those of libraries run already, and would stay where they are
            os.sched_setaffinity(int(thread), cores)
    except (RunError, OSError, ValueError) as error:
        line = f"cluster.numa_binding: rank {rank} is not bound to cores: {error}"
        if rank != "0":
            print(f"warning: {line}", file=sys.stderr)
        return line
    return f"cluster.numa_binding: rank {rank} on cores {as_ranges(cores)}: {place}"


def device_address(local_rank: int) -> str | None:
    """Return the PCI address of this process' CUDA device as sysfs writes it, or None without CUDA."""
    import torch

    if not torch.cuda.is_available() or local_rank >= torch.cuda.device_count():
        return None
    device = torch.cuda.get_device_properties(local_rank)
    return f"{device.pci_domain_id:04x}:{device.pci_bus_id:02x}:{device.pci_device_id:02x}.0"


def numa_node(address: str, system: Path = SYSTEM) -> int:
    """Return the NUMA node of the PCI device at `address`.

    Raises:
        RunError: the machine does not say (-1: it has no such nodes, or is a virtual one that hides them).
    """
    path = system / "bus" / "pci" / "devices" / address / "numa_node"
    node = int(path.read_text())
    if node < 0:
        raise RunError(f"{path} says {node}: the machine does not tell which cores are near")
    return node


def cores_of_node(node: int, system: Path = SYSTEM) -> set[int]:
    """Return the logical cores of a NUMA node."""
    return from_ranges((system / "devices" / "system" / "node" / f"node{node}" / "cpulist").read_text())


def share_of_cores(allowed: set[int], local_rank: int, local_size: int, system: Path = SYSTEM) -> set[int]:
    """Return this process' part of `allowed`: the parts differ by at most one core and, as far as they can, keep to
    one NUMA node and keep both threads of a core together. With more processes than cores, some share one.

    Args:
        local_rank, local_size: this process among those of this machine.
    """
    if not 0 <= local_rank < local_size:
        raise ValueError(f"LOCAL_RANK={local_rank} is not below LOCAL_WORLD_SIZE={local_size}")
    node_of = {}
    for path in sorted((system / "devices" / "system" / "node").glob("node[0-9]*/cpulist")):
        node = int(path.parent.name.removeprefix("node"))
        node_of.update(dict.fromkeys(from_ranges(path.read_text()), node))

    def place(core: int) -> tuple[int, int, int]:
        siblings = system / "devices" / "system" / "cpu" / f"cpu{core}" / "topology" / "thread_siblings_list"
        first = min(from_ranges(siblings.read_text()), default=core) if siblings.exists() else core
        return node_of.get(core, 0), first, core

    ordered = sorted(allowed, key=place)
    start = local_rank * len(ordered) // local_size
    return set(ordered[start : max(start + 1, (local_rank + 1) * len(ordered) // local_size)])


def from_ranges(text: str) -> set[int]:
    """Read the kernel's notation of a set of cores: "0-3,8" (cpuset(7), "List format")."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def as_ranges(cores: set[int]) -> str:
    """Write a set of cores in the kernel's notation."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
