"""What `llama-launch doctor` makes of what the ranks say: each fault planted in one node of three, and named."""

import copy

import pytest

from launch.health import GPU_FIELDS, THROTTLED, judge, judge_network

GPU = dict(zip(GPU_FIELDS, ["H100", "550", "40", "1980", "1980", "0"], strict=True))


def healthy() -> list[dict]:
    files = [".health-0", ".health-2", ".health-4"]
    every = []
    for rank in range(6):
        about = {"rank": rank, "host": f"n{rank // 2}", "software": {"torch": "2.13.0"}, "clock": 1000.0 + rank / 1000}
        first = {
            "gpus": [dict(GPU), dict(GPU)],
            "free_gigabytes": 500.0,
            "write_megabytes_per_second": 900.0,
            "files_seen": files,
        }
        every.append(about | (copy.deepcopy(first) if rank % 2 == 0 else {}))
    return every


def other_version(every: list[dict]) -> None:
    every[3]["software"] = {"torch": "2.12.0"}


def clock_off(every: list[dict]) -> None:
    every[2]["clock"] += 90


def gpu_missing(every: list[dict]) -> None:
    every[2]["gpus"].pop()


def memory_errors(every: list[dict]) -> None:
    every[2]["gpus"][1]["ecc.errors.uncorrected.volatile.total"] = "4"


def too_hot(every: list[dict]) -> None:
    every[2]["gpus"][1] |= {THROTTLED: "Active", "clocks.sm": "345"}


def other_driver(every: list[dict]) -> None:
    every[2]["gpus"][0]["driver_version"] = "535"


def slow_disk(every: list[dict]) -> None:
    every[2]["write_megabytes_per_second"] = 12.0


def disk_full(every: list[dict]) -> None:
    every[2]["free_gigabytes"] = 0.2


def other_disk(every: list[dict]) -> None:
    every[2]["files_seen"] = [".health-2"]


def no_disk(every: list[dict]) -> None:
    every[2]["disk_problem"] = "/runs: Read-only file system"


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (other_version, "rank 3 (n1) runs torch 2.12.0 instead of 2.13.0"),
        (clock_off, "n1: its clock is +90.0 s off"),
        (gpu_missing, "n1: 1 GPUs, 2 on others"),
        (memory_errors, "n1: GPU 1 has had 4 uncorrected memory errors"),
        (too_hot, "n1: GPU 1 is slowed down by its hardware (heat or power), at 345 MHz"),
        (other_driver, "n1: GPU 0 has driver_version 535, most others 550"),
        (slow_disk, "n1: writes 12 MB/s in the directory, others 900"),
        (disk_full, "n1: only 0.2 GB free"),
        (other_disk, "n1: does not see 2 of 3 nodes' files"),
        (no_disk, "n1: cannot write in /runs: Read-only file system"),
    ],
)
def test_each_fault_is_named_with_its_node_and_nothing_else(plant, words) -> None:
    every = healthy()
    assert judge(every, 2) == []
    plant(every)
    [problem] = judge(every, 2)
    assert words in problem


NAMES = ["n0", "n1", "n2", "n3"]
PAIRS = [("of 2 nodes", [[0, 1], [2, 3]], [1.0, 1.0]), ("of 2 nodes", [[0, 2], [1, 3]], [1.0, 0.2])]


@pytest.mark.parametrize(
    ("measured", "bad", "silent", "said"),
    [
        (PAIRS[:1], [], [], []),
        (PAIRS[:1], [2], [], ["n2: its network is slow or fails"]),
        (PAIRS, [], [], ["n1 and n3: slow between these two alone"]),
        (PAIRS, [], [3], []),  # what was measured with a node that ended says nothing of the others
        (PAIRS, [0, 1, 2], [3], ["n0, n1, n2: no all-reduce between any two of them works"]),
        (
            [("inside of one node", [[0], [1], [2], [3]], [9.0, 9.1, 2.0, 9.2])],
            [],
            [],
            ["n2: all-reduce among its own ranks is slow or fails"],
        ),
    ],
)
def test_what_is_said_of_the_network(measured, bad, silent, said) -> None:
    assert judge_network(measured, bad, silent, NAMES, links=True) == said
    if "between these two" in "".join(said):
        assert judge_network(measured, bad, silent, NAMES, links=False) == []


def test_of_a_rank_that_is_silent_nothing_is_judged() -> None:
    every = healthy()
    every[2] = every[3] = None
    for each in every[::2]:
        if each is not None:
            each["files_seen"] = [".health-0", ".health-4"]
    assert judge(every, 2) == []
