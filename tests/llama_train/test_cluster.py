"""Environment and cores of a process: against made-up machines, and on this one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train import cluster
from llama_train.cluster import as_ranges, bind, from_ranges, prepare, set_environment, share_of_cores
from llama_train.config import ClusterConfig, TrainConfig


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two NUMA nodes of two cores with two threads each: core 0 is {0, 4}, ... as Intel numbers them; one GPU each."""
    for node, cores in enumerate(("0-1,4-5", "2-3,6-7")):
        write(tmp_path / f"devices/system/node/node{node}/cpulist", cores)
    for core in range(8):
        write(tmp_path / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list", f"{core % 4},{core % 4 + 4}")
    write(tmp_path / "bus/pci/devices/0000:18:00.0/numa_node", "0")
    write(tmp_path / "bus/pci/devices/0000:9a:00.0/numa_node", "1")
    write(tmp_path / "bus/pci/devices/0000:ff:00.0/numa_node", "-1")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """What each thread of this process was bound to; really binding it would bind all later tests."""
    threads: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_setaffinity", threads.__setitem__)
    return threads


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(local_rank: int, local_size: int, cores: set[int], address: str | None = None) -> None:
        for name, value in (("RANK", local_rank), ("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_size)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread: set(cores))
        monkeypatch.setattr(cluster, "device_address", lambda rank: address)

    return put


@pytest.fixture
def kept_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(("address", "cores"), [("0000:18:00.0", {0, 1, 4, 5}), ("0000:9a:00.0", {2, 3, 6, 7})])
def test_a_process_runs_on_the_cores_next_to_its_device(
    machine: Path, bound: dict, place: Callable, address: str, cores: set[int]
) -> None:
    place(1, 2, set(range(8)), address)
    line = bind("auto", machine)
    assert set(map(int, os.listdir("/proc/self/task"))) <= bound.keys()
    assert all(mine == cores for mine in bound.values())
    assert line == (
        f"cluster.numa_binding: rank 1 on cores {as_ranges(cores)}: NUMA node {int(2 in cores)} of device {address}"
    )


def test_cores_that_the_scheduler_did_not_give_stay_out(machine: Path, bound: dict, place: Callable) -> None:
    place(0, 1, {1, 2, 3}, "0000:9a:00.0")
    bind("cuda", machine)
    assert set(map(frozenset, bound.values())) == {frozenset({2, 3})}


@pytest.mark.parametrize(
    ("address", "cores", "why"),
    [
        ("0000:ff:00.0", set(range(8)), "numa_node says -1"),
        ("0000:aa:00.0", set(range(8)), "No such file"),
        ("0000:9a:00.0", {0, 1}, "none of the cores of NUMA node 1 of device 0000:9a:00.0 may be used"),
    ],
)
def test_a_machine_that_does_not_say_leaves_the_process_unbound_and_tells(
    machine: Path, bound: dict, place: Callable, capsys: pytest.CaptureFixture, address: str, cores: set, why: str
) -> None:
    place(1, 2, cores, address)
    line = bind("cuda", machine)
    assert "rank 1 is not bound to cores" in line
    assert why in line
    assert bound == {}
    assert capsys.readouterr().err == f"warning: {line}\n", "rank 0 has the console, the others do not"


def test_without_devices_the_cores_are_split_evenly_and_whole(machine: Path, bound: dict, place: Callable) -> None:
    shares = [share_of_cores(set(range(8)), rank, 4, machine) for rank in range(4)]
    assert shares == [{0, 4}, {1, 5}, {2, 6}, {3, 7}], "both threads of a core"
    assert [share_of_cores(set(range(8)), rank, 2, machine) for rank in range(2)] == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    place(1, 2, set(range(8)), "0000:18:00.0")
    assert bind("cpu", machine).endswith("rank 1 on cores 2-3,6-7: share 2 of 2 of this machine's cores")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8])
def test_shares_are_disjoint_complete_and_differ_by_one_core_at_most(machine: Path, size: int) -> None:
    shares = [share_of_cores(set(range(8)), rank, size, machine) for rank in range(size)]
    assert sorted(core for share in shares for core in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_cores_still_have_one_each(machine: Path) -> None:
    assert [len(share_of_cores({0, 1}, rank, 5, machine)) for rank in range(5)] == [1] * 5


def test_a_machine_without_sysfs_still_splits(tmp_path: Path) -> None:
    assert [share_of_cores({3, 4, 9}, rank, 3, tmp_path) for rank in range(3)] == [{3}, {4}, {9}]


@pytest.mark.parametrize(("text", "cores"), [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0,2", {0, 2})])
def test_ranges_are_the_kernels(text: str, cores: set[int]) -> None:
    assert from_ranges(text + "\n") == cores
    assert as_ranges(cores) == text


def test_binding_really_moves_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core cannot be split")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        prepare(ClusterConfig(device="cpu", numa_binding=True))
        assert len(os.sched_getaffinity(0)) == (len(before) + 1) // 2
        assert os.sched_getaffinity(0) < before
    finally:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), before)


def test_variables_are_set_and_what_they_replace_is_named(kept_environment: None) -> None:
    os.environ["NCCL_DEBUG"] = "INFO"
    os.environ.pop("NCCL_IB_HCA", None)
    lines = set_environment({"NCCL_DEBUG": "WARN", "NCCL_IB_HCA": "mlx5"})
    assert lines == [
        "cluster.nccl: NCCL_DEBUG=WARN, instead of INFO from the environment",
        "cluster.nccl: NCCL_IB_HCA=mlx5",
    ]
    assert (os.environ["NCCL_DEBUG"], os.environ["NCCL_IB_HCA"]) == ("WARN", "mlx5")


def test_variables_are_there_before_the_process_groups_start(tiny: list[str], launch: Callable) -> None:
    ended = launch([*tiny, "cluster.nccl={GLOO_SOCKET_IFNAME: nosuch0}"])
    assert ended.returncode != 0
    assert "nosuch0" in ended.stderr, "Gloo reads the name of its interface once, when it starts"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.nccl={PATH: /tmp}", r"cluster\.nccl\.PATH: only names that begin with NCCL_, TORCH_NCCL_ or GLOO_"),
        ("cluster.nccl={LD_PRELOAD: x.so}", r"cluster\.nccl\.LD_PRELOAD: only names"),
        ("cluster.nccl={nccl_debug: WARN}", r"cluster\.nccl\.nccl_debug: only names"),
        ("cluster.nccl={NCCL_IB_DISABLE: true}", r"NCCL_IB_DISABLE=True: NCCL's switches are numbers; use 1"),
        ("cluster.numa_binding=maybe", r"cluster\.numa_binding=maybe must be true or false"),
    ],
)
def test_other_variables_are_refused_by_name(tiny: list[str], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose.compose("train", TrainConfig, [*tiny, override])


def test_communication_settings_come_as_text(tiny: list[str]) -> None:
    settings = "{NCCL_DEBUG: WARN, NCCL_IB_TIMEOUT: 22, TORCH_NCCL_ASYNC_ERROR_HANDLING: 1, FI_PROVIDER: efa}"
    config = compose.compose("train", TrainConfig, [*tiny, f"cluster.nccl={settings}", "cluster.numa_binding=true"])
    assert config.cluster.nccl == {
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_TIMEOUT": "22",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "FI_PROVIDER": "efa",
    }
    assert config.cluster.numa_binding
