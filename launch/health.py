"""`python -m launch.health DIRECTORY`, on every rank of a job: is this set of machines fit to train on?

Versions, GPUs, the shared directory, clocks, and the network between the nodes. Rank 0 prints the table; the status
is 3 if something is wrong. `llama-launch doctor` starts it; by hand it runs under launch.torchrun or srun.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.bandwidth import every_pair, rounds, slow_nodes
from launch.gpus import gpu_facts
from llama_foundation.errors import RunError, exit_status
from llama_train.agreement import difference, software
from llama_train.distributed import World, distributed, meet

MOST_SKEW_SECONDS = 1.0  # logs and leases are compared across nodes; assumed
FEWEST_FREE_GIGABYTES = 10.0  # a checkpoint of a small model; assumed
SPEED_BYTES = 1 << 26
GPU_FIELDS = "name,driver_version,temperature.gpu,clocks.sm,clocks.max.sm,ecc.errors.uncorrected.volatile.total"


def examine(directory: Path, device: str, full: bool, megabytes: int) -> int:
    """Run all checks on all ranks; return the exit status, the same on every rank."""
    store = meet(600)
    with distributed(device, store, 120) as world:
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        count = world.size // per_node
        about = facts(directory, world.rank, world.local_rank == 0)
        dist.barrier(group=world.control)
        about["clock"] = time.time()
        if world.local_rank == 0:
            about["files_seen"] = [path.name for path in directory.glob(".health-*")]
        dist.barrier(group=world.control)
        if world.local_rank == 0:
            (directory / f".health-{world.rank}").unlink(missing_ok=True)
        every = _share(store, "facts", world, about)
        measured = []
        for number, groups in enumerate(rounds(count) + (every_pair(count) if full and count > 2 else [])):
            mine = _measure(groups, per_node, world, megabytes)
            values = _share(store, f"round-{number}", world, mine)
            measured.append((groups, [min(values[rank] for rank in _ranks(group, per_node)) for group in groups]))
        names = [every[number * per_node]["host"] for number in range(count)]
        problems = judge(every, per_node)
        problems += [f"{names[number]}: its network is slow or fails" for number in slow_nodes(measured)]
        if world.main:
            report(every[::per_node], measured, problems)
        return RunError.exit_code if problems else 0


def facts(directory: Path, rank: int, first: bool) -> dict[str, Any]:
    """Return what this rank can say by itself; the first rank of a node speaks for its disk and its GPUs."""
    about: dict[str, Any] = {"rank": rank, "host": socket.gethostname(), "software": software()}
    if not first:
        return about
    about["gpus"] = gpu_facts(GPU_FIELDS)
    try:
        about["free_gigabytes"] = shutil.disk_usage(directory).free / 1e9
        path = directory / f".health-{rank}"
        start = time.perf_counter()
        with open(path, "wb") as file:
            file.write(os.urandom(1 << 20) * (SPEED_BYTES >> 20))
            os.fsync(file.fileno())
        about["write_megabytes_per_second"] = SPEED_BYTES / 1e6 / (time.perf_counter() - start)
    except OSError as error:
        about["disk_problem"] = f"{directory}: {error.strerror}"
    return about


def judge(every: list[dict[str, Any]], per_node: int) -> list[str]:
    """Return what is wrong, node by node, for people to read."""
    problems = []
    firsts = every[::per_node]
    gpu_counts = [len(each["gpus"]) for each in firsts]
    clock = statistics.median(each["clock"] for each in every)
    written = {f".health-{each['rank']}" for each in firsts if "disk_problem" not in each}
    for each in every:
        if other := difference(each["software"], every[0]["software"]):
            problems.append(f"rank {each['rank']} ({each['host']}) runs {other} of rank 0")
        if abs(each["clock"] - clock) > MOST_SKEW_SECONDS:
            problems.append(f"{each['host']}: its clock is {each['clock'] - clock:+.1f} s off the others'")
    for each, count in zip(firsts, gpu_counts, strict=True):
        host = each["host"]
        if count != max(gpu_counts):
            problems.append(f"{host}: {count} GPUs, {max(gpu_counts)} on others")
        for number, gpu in enumerate(each["gpus"]):
            if gpu[-1] not in ("0", "[N/A]", "N/A"):
                problems.append(f"{host}: GPU {number} has had {gpu[-1]} uncorrected memory errors")
        if "disk_problem" in each:
            problems.append(f"{host}: cannot write in {each['disk_problem']}")
        elif each["free_gigabytes"] < FEWEST_FREE_GIGABYTES:
            problems.append(f"{host}: only {each['free_gigabytes']:.1f} GB free in the directory")
        if unseen := written - set(each["files_seen"]):
            problems.append(f"{host}: does not see {len(unseen)} of {len(written)} nodes' files; directory not shared?")
    return list(dict.fromkeys(problems))


def report(firsts: list[dict[str, Any]], measured: list, problems: list[str]) -> None:
    """Print what was found."""
    print(f"{'node':16} {'GPUs':>4} {'free GB':>9} {'write MB/s':>10} {'clock ms':>9}")
    clock = statistics.median(each["clock"] for each in firsts)
    for each in firsts:
        free, speed = each.get("free_gigabytes", 0.0), each.get("write_megabytes_per_second", 0.0)
        skew = (each["clock"] - clock) * 1000
        print(f"{each['host']:16} {len(each['gpus']):4} {free:9,.1f} {speed:10,.0f} {skew:+9.1f}")
        for number, gpu in enumerate(each["gpus"]):
            fields = (f"{name} {value}" for name, value in zip(GPU_FIELDS.split(","), gpu, strict=False))
            print(f"    GPU {number}: {', '.join(fields)}")
    for groups, values in measured:
        print(f"all-reduce in groups of {len(groups[0])} nodes: {min(values):.2f} to {max(values):.2f} GB/s")
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print("nothing wrong" if not problems else f"{len(problems)} problems", flush=True)


def _ranks(nodes: list[int], per_node: int) -> list[int]:
    return [number * per_node + local for number in nodes for local in range(per_node)]


def _measure(groups: list[list[int]], per_node: int, world: World, megabytes: int) -> float:
    """All-reduce in all groups of nodes at the same time; return the bus bandwidth of this rank's group in GB/s.

    Bus bandwidth is bytes · 2(n − 1)/n / seconds (NVIDIA/nccl-tests, doc/PERFORMANCE.md); 0 where it failed.
    """
    mine = None
    for nodes in groups:
        ranks = _ranks(nodes, per_node)
        group = dist.new_group(ranks, timeout=timedelta(seconds=60))
        mine = group if world.rank in ranks else mine
    if mine is None:
        return 0.0
    count = mine.size()
    tensor = torch.ones(megabytes << 18, device=world.device)  # float32
    try:
        dist.all_reduce(tensor, group=mine)  # connects
        _wait(world.device)
        start = time.perf_counter()
        for _ in range(3):
            dist.all_reduce(tensor, group=mine)
        _wait(world.device)
        return tensor.numel() * 4 * 2 * (count - 1) / count / ((time.perf_counter() - start) / 3) / 1e9
    except RuntimeError as error:
        print(f"{world.host}: all-reduce failed: {str(error).splitlines()[0]}", file=sys.stderr)
        return 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _share(store: dist.Store, key: str, world: World, value: Any) -> list[Any]:
    """Return every rank's value, on every rank; as JSON, because torch.distributed would pickle objects."""
    store.set(f"health-{key}-{world.rank}", json.dumps(value))
    return [json.loads(store.get(f"health-{key}-{each}")) for each in range(world.size)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.health", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full", action="store_true", help="measure every pair of nodes")
    parser.add_argument("--megabytes", type=int, default=64, help="size of an all-reduce")
    options = parser.parse_args()
    return examine(options.directory, options.device, options.full, options.megabytes)


if __name__ == "__main__":
    sys.exit(exit_status(main))
