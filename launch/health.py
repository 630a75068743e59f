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
from typing import TYPE_CHECKING, Any

from launch.bandwidth import SLOW, Round, bad_of_pairs, every_pair, find_bad_nodes, slow_pairs
from launch.gpus import gpu_facts
from launch.measure import bus_bandwidth
from llama_foundation.errors import RunError, exit_status
from llama_train.agreement import difference, software
from llama_train.distributed import meet
from llama_train.environment import environment_rank, local_world_size

if TYPE_CHECKING:
    import torch.distributed as dist

MOST_SKEW_SECONDS = 1.0  # logs and leases are compared across nodes; assumed
FEWEST_FREE_GIGABYTES = 10.0  # a checkpoint of a small model; assumed
SLOWEST_WRITE = 0.1  # of the median node's speed in the directory; assumed
SPEED_BYTES = 1 << 26
START_SECONDS = 300.0  # until every rank has started, and has written in the directory
GPU_FIELDS = (
    *("name", "driver_version", "temperature.gpu", "clocks.sm", "clocks.max.sm"),
    "ecc.errors.uncorrected.volatile.total",
)
SAME_EVERYWHERE = ("name", "driver_version", "clocks.max.sm")
THROTTLED = "clocks_throttle_reasons.hw_slowdown"


class Meeting:
    """What all ranks tell each other through the job's store; a rank that once did not answer is not waited for again.

    Rank 0 collects, so that all agree on who is silent.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.silent: set[int] = set()

    def share(self, key: str, value: Any, seconds: float) -> list[Any]:
        """Return every rank's value, None for a silent one, on every rank; as JSON, because torch would pickle.

        Args:
            key: never used before.
            seconds: how long rank 0 waits for the others.

        Raises:
            RunError: rank 0 does not answer, or did not get this rank's value in time.
        """
        self.store.set(f"health-{key}-{self.rank}", json.dumps(value))
        if self.rank == 0:
            self.store.set(f"health-{key}", json.dumps(self._collect(key, seconds)))
        try:
            self.store.wait([f"health-{key}"], timedelta(seconds=seconds + 60))
        except RuntimeError as error:
            raise RunError(f"{socket.gethostname()}: rank 0, where all meet, does not answer ({key})") from error
        answers = json.loads(self.store.get(f"health-{key}"))
        self.silent = {rank for rank, answer in enumerate(answers) if answer is None}
        if self.rank in self.silent:
            raise RunError(f"{socket.gethostname()}: rank {self.rank} answered too late ({key})")
        return [None if answer is None else answer[0] for answer in answers]

    def _collect(self, key: str, seconds: float) -> list[list[Any] | None]:
        deadline = time.monotonic() + seconds
        answers: list[list[Any] | None] = []
        for rank in range(self.size):
            name = f"health-{key}-{rank}"
            try:
                if rank in self.silent:
                    raise RuntimeError("silent already")
                self.store.wait([name], timedelta(seconds=max(deadline - time.monotonic(), 0.01)))
                answers.append([json.loads(self.store.get(name))])
            except RuntimeError:
                answers.append(None)
        return answers


def examine(directory: Path, device: str, full: bool, megabytes: int, seconds: float) -> int:
    """Run all checks on all ranks; return the exit status, the same on every rank.

    Args:
        directory: shared by all nodes.
        device: cpu, cuda, or auto for CUDA where there is any.
        full: measure every pair of nodes.
        megabytes: of an all-reduce.
        seconds: after which an all-reduce has failed.
    """
    rank, size = environment_rank()
    meeting = Meeting(meet(600), rank, size)
    per_node = local_world_size() or 1
    count = size // per_node
    hosts = meeting.share("host", socket.gethostname(), START_SECONDS)
    names = [hosts[number * per_node] or f"node {number}" for number in range(count)]
    first = rank % per_node == 0
    about = facts(directory, rank, first)
    meeting.share("ready", None, START_SECONDS)
    about["clock"] = time.time()
    if first:
        about["files_seen"] = [path.name for path in directory.glob(".health-*")]
    every = meeting.share("facts", about, START_SECONDS)
    if first:
        (directory / f".health-{rank}").unlink(missing_ok=True)

    measured: list[tuple[str, Round, list[float]]] = []

    def measure(groups: Round, kind: str = "of {} nodes") -> list[float]:
        number = len(measured)
        mine = next((group for group in groups if rank // per_node in group), [])
        members = _ranks(mine, per_node)
        value, problem = 0.0, ""
        if len(members) > 1 and not meeting.silent.intersection(members):
            value, problem = bus_bandwidth(f"{number}-{mine[0]}", members, rank, device, megabytes, seconds)
        if problem and first:
            with_whom = ", ".join(names[node] for node in mine)
            print(f"{names[rank // per_node]}: all-reduce among {with_whom} failed: {problem}", file=sys.stderr)
        values = meeting.share(f"round-{number}", value, seconds + 15)
        found = [min(values[each] or 0.0 for each in _ranks(group, per_node)) for group in groups]
        measured.append((kind.format(len(groups[0])), groups, found))
        return found

    for _ in range(2 if per_node > 1 else 0):  # of two the better counts: a disturbance is not the node
        measure([[node] for node in range(count)], "inside of one node")
    bad = find_bad_nodes(count, measure)
    if full and count > 2:
        bad = sorted({*bad, *bad_of_pairs([(groups, measure(groups)) for groups in every_pair(count)])})
    silent = sorted({each // per_node for each in meeting.silent})
    problems = judge(every, per_node)
    problems += [f"{names[node]}: it does not answer any more; has it crashed?" for node in silent]
    problems += judge_network(measured, [node for node in bad if node not in silent], silent, names, full)
    if rank == 0:
        report(names, every[::per_node], measured, problems)
    return RunError.exit_code if problems else 0


def facts(directory: Path, rank: int, first: bool) -> dict[str, Any]:
    """Return what this rank can say by itself; the first rank of a node speaks for its disk and its GPUs."""
    about: dict[str, Any] = {"rank": rank, "host": socket.gethostname(), "software": software()}
    if not first:
        return about
    about["gpus"] = [dict(zip(GPU_FIELDS, values, strict=True)) for values in gpu_facts(",".join(GPU_FIELDS))]
    for gpu, values in zip(about["gpus"], gpu_facts(THROTTLED), strict=False):
        gpu[THROTTLED] = values[0]
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


def judge(every: list[dict[str, Any] | None], per_node: int) -> list[str]:
    """Return what is wrong, node by node, for people to read; of a silent rank (None) nothing is said."""
    problems = []
    heard = [each for each in every if each is not None]
    firsts = [each for each in every[::per_node] if each is not None]
    most_gpus = max(len(each["gpus"]) for each in firsts)
    clock = statistics.median(each["clock"] for each in heard)
    written = {f".health-{each['rank']}" for each in firsts if "disk_problem" not in each}
    speed = statistics.median(each.get("write_megabytes_per_second", 0.0) for each in firsts)
    for each in heard:
        if other := difference(each["software"], heard[0]["software"]):
            problems.append(f"rank {each['rank']} ({each['host']}) runs {other} of rank {heard[0]['rank']}")
        if abs(each["clock"] - clock) > MOST_SKEW_SECONDS:
            problems.append(f"{each['host']}: its clock is {each['clock'] - clock:+.1f} s off the others'")
    for each in firsts:
        host = each["host"]
        if len(each["gpus"]) != most_gpus:
            problems.append(f"{host}: {len(each['gpus'])} GPUs, {most_gpus} on others")
        for number, gpu in enumerate(each["gpus"]):
            problems += [f"{host}: GPU {number} {problem}" for problem in _judge_gpu(gpu, firsts)]
        if "disk_problem" in each:
            problems.append(f"{host}: cannot write in {each['disk_problem']}")
        elif each["free_gigabytes"] < FEWEST_FREE_GIGABYTES:
            problems.append(f"{host}: only {each['free_gigabytes']:.1f} GB free in the directory")
        elif each["write_megabytes_per_second"] < SLOWEST_WRITE * speed:
            own = each["write_megabytes_per_second"]
            problems.append(f"{host}: writes {own:.0f} MB/s in the directory, others {speed:.0f}")
        if unseen := written - set(each["files_seen"]):
            problems.append(f"{host}: does not see {len(unseen)} of {len(written)} nodes' files; directory not shared?")
    return list(dict.fromkeys(problems))


def _judge_gpu(gpu: dict[str, str], firsts: list[dict[str, Any]]) -> list[str]:
    problems = []
    errors = gpu["ecc.errors.uncorrected.volatile.total"]
    if errors not in ("0", "[N/A]", "N/A"):
        problems.append(f"has had {errors} uncorrected memory errors")
    if gpu.get(THROTTLED) == "Active":
        problems.append(f"is slowed down by its hardware (heat or power), at {gpu['clocks.sm']} MHz")
    for name in SAME_EVERYWHERE:
        usual = statistics.mode(other[name] for each in firsts for other in each["gpus"])
        if gpu[name] != usual:
            problems.append(f"has {name} {gpu[name]}, most others {usual}")
    return problems


def judge_network(
    measured: list[tuple[str, Round, list[float]]], bad: list[int], silent: list[int], names: list[str], links: bool
) -> list[str]:
    """Return what is wrong with the network, for people to read.

    Args:
        measured: what was measured, the groups and their bandwidths in GB/s.
        bad: nodes that were found to be slow or to fail.
        silent: nodes that have ended meanwhile.
        names: of all nodes.
        links: whether to say which two good nodes are slow with each other.
    """
    living = [node for node in range(len(names)) if node not in silent]
    problems = []
    inside = [values for kind, _, values in measured if kind == "inside of one node"]
    best = [max(values) for values in zip(*inside, strict=True)]
    for node in living if best else []:
        if best[node] <= 0 or best[node] < SLOW * statistics.median_high(best):
            problems.append(f"{names[node]}: all-reduce among its own ranks is slow or fails")
    if len(living) > 1 and bad == living:
        return [*problems, f"{', '.join(names[node] for node in bad)}: no all-reduce between any two of them works"]
    problems += [f"{names[node]}: its network is slow or fails" for node in bad]
    pairs = slow_pairs([(groups, values) for _, groups, values in measured]) if links else {}
    slow = [pair for pair, is_slow in pairs.items() if is_slow and not {*bad, *silent}.intersection(pair)]
    return problems + [f"{names[one]} and {names[other]}: slow between these two alone" for one, other in slow]


def report(
    names: list[str],
    firsts: list[dict[str, Any] | None],
    measured: list[tuple[str, Round, list[float]]],
    problems: list,
) -> None:
    """Print what was found."""
    print(f"{'node':16} {'GPUs':>4} {'free GB':>9} {'write MB/s':>10} {'clock ms':>9}")
    heard = [each for each in firsts if each is not None]
    clock = statistics.median(each["clock"] for each in heard)
    for name, each in zip(names, firsts, strict=True):
        if each is None:
            print(f"{name:16} does not answer")
            continue
        free, speed = each.get("free_gigabytes", 0.0), each.get("write_megabytes_per_second", 0.0)
        skew = (each["clock"] - clock) * 1000
        print(f"{name:16} {len(each['gpus']):4} {free:9,.1f} {speed:10,.0f} {skew:+9.1f}")
        for number, gpu in enumerate(each["gpus"]):
            print(f"    GPU {number}: {', '.join(f'{field} {value}' for field, value in gpu.items())}")
    versions = ", ".join(f"{name} {version}" for name, version in heard[0]["software"].items())
    print(f"versions of rank {heard[0]['rank']}: {versions}")
    for kind, groups, values in measured:
        lowest = groups[values.index(min(values))]
        among = f", the least among {_some(names, lowest)}" if len(groups) > 1 else ""
        print(f"all-reduce {kind}: {min(values):.3g} to {max(values):.3g} GB/s{among}")
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print("nothing wrong" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", flush=True)


def _some(names: list[str], nodes: list[int]) -> str:
    named = ", ".join(names[node] for node in nodes[:4])
    return named + (f" and {len(nodes) - 4} more" if nodes[4:] else "")


def _ranks(nodes: list[int], per_node: int) -> list[int]:
    return [number * per_node + local for number in nodes for local in range(per_node)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.health", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full", action="store_true", help="measure every pair of nodes")
    parser.add_argument("--megabytes", type=int, default=64, help="size of an all-reduce")
    parser.add_argument("--timeout", type=float, default=60, help="seconds after which an all-reduce has failed")
    options = parser.parse_args()
    return examine(options.directory, options.device, options.full, options.megabytes, options.timeout)


if __name__ == "__main__":
    sys.exit(exit_status(main))
