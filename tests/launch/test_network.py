"""`launch.health` in a real network: namespaces with names and addresses of their own, on a switch, of known speeds."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODES = 6
PORT = 29500
FAST, SLOWER = "50mbit", "10mbit"

pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root, and ip and tc of iproute2"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def network() -> Iterator[list[str]]:
    """Namespaces n0, n1, ... behind a switch; every node sends FAST bits a second."""
    switch = f"llama{os.getpid()}"
    nodes = [f"{switch}n{number}" for number in range(NODES)]
    try:
        try:
            ip("netns", "add", switch)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number, node in enumerate(nodes):
            ip("netns", "add", node)
            ip("-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", node, "address", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
            ip("-n", node, "link", "set", "lo", "up")
            send(node, FAST)
        yield nodes
    finally:
        for name in [*nodes, switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def send(node: str, rate: str) -> None:
    """Let a node send and its switch hand on `rate` bits a second."""
    limit = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "500ms"]
    subprocess.run(["tc", "-n", node, "qdisc", "replace", "dev", "eth0", *limit], check=True)


@contextlib.contextmanager
def doctor(nodes: list[str], directory: Path, *options: str) -> Iterator[list[subprocess.Popen]]:
    """One rank on each node."""
    started = []
    for rank, node in enumerate(nodes):
        environment = dict(os.environ) | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": str(len(nodes)),
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        # A name of its own for each node, as `hostname` would set it: unshare ends here, not on the machine.
        inside = f'hostname n{rank} && exec "$0" -m launch.health "$@"'
        command = ["ip", "netns", "exec", node, "unshare", "--uts", "bash", "-c", inside, sys.executable]
        arguments = [str(directory), "--device=cpu", "--megabytes=1", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*command, *arguments], env=environment, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def children(rank: int) -> list[int]:
    """The processes in which a rank measures; the shell that it is at first has others."""
    try:
        if not Path(f"/proc/{rank}/cmdline").read_bytes().startswith(sys.executable.encode()):
            return []
        return [int(pid) for pid in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()]
    except OSError:
        return []


def problems(said: str) -> list[str]:
    return [line.removeprefix("PROBLEM  ") for line in said.splitlines() if line.startswith("PROBLEM")]


def test_healthy_nodes_are_measured_at_their_speed(network, tmp_path) -> None:
    with doctor(network, tmp_path) as ranks:
        said, errors = ranks[0].communicate(timeout=200)
    assert problems(said) == [] and "failed" not in errors, said + errors
    assert [line.split()[0] for line in said.splitlines()[1 : NODES + 1]] == [f"n{rank}" for rank in range(NODES)]
    [whole] = [line for line in said.splitlines() if f"of {NODES} nodes" in line]
    measured = float(whole.split(": ")[1].split()[0])
    # A node sends at most 50 Mbit/s = 0.00625 GB/s, and an all-reduce cannot be faster than its bus bandwidth.
    assert 0.003 < measured < 0.0065, whole


def test_a_node_with_a_slow_cable_is_named(network, tmp_path) -> None:
    send(network[4], SLOWER)
    try:
        with doctor(network, tmp_path) as ranks:
            said, _ = ranks[0].communicate(timeout=200)
    finally:
        send(network[4], FAST)
    assert problems(said) == ["n4: its network is slow or fails"], said
    assert ranks[0].returncode == 3


def test_a_node_whose_cable_is_pulled_for_others_is_named(network, tmp_path) -> None:
    """It reaches the first node, where all meet, and no other."""
    drop = "for other in 2 3 4 6; do ip route add blackhole 10.77.0.$other/32; done"
    undo = drop.replace("route add", "route delete")
    subprocess.run(["ip", "netns", "exec", network[4], "sh", "-c", drop], check=True)
    try:
        with doctor(network, tmp_path, "--timeout=10") as ranks:
            said, errors = ranks[0].communicate(timeout=280)
    finally:
        subprocess.run(["ip", "netns", "exec", network[4], "sh", "-c", undo], check=True)
    assert problems(said) == ["n4: its network is slow or fails"], said + errors


def test_a_node_that_dies_during_an_all_reduce_is_named_and_the_others_are_measured(network, tmp_path) -> None:
    with doctor(network, tmp_path, "--timeout=15", "--megabytes=2") as ranks:
        deadline = time.monotonic() + 120
        while not (measuring := children(ranks[3].pid)):
            assert time.monotonic() < deadline and ranks[3].poll() is None
            time.sleep(0.02)
        for pid in [ranks[3].pid, *measuring]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        said, errors = ranks[0].communicate(timeout=280)
    assert problems(said) == ["n3: it does not answer any more; has it crashed?"], said + errors
    assert ranks[0].returncode == 3
    assert "all-reduce among" in errors and socket.gethostname() not in said
