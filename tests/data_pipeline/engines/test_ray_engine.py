"""On a real cluster of two nodes on loopback."""

import os
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline.engines.ray import RayEngine
from data_pipeline.engines.work import Commit, Task, read_block, run_phase, write_blocks
from llama_foundation.errors import ConfigError, DataError, RunError

TASKS = [Task(f"{number:06d}", f"piece {number}", number) for number in range(16)]


def work(folder: Path, task: Task) -> Commit:
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder.parent / f"{task.payload}-{node}-{os.getpid()}-{time.time_ns()}").touch()
    if (folder.parent / f"bad-{task.payload}").exists():
        raise DataError(f"row {task.payload} is bad")
    while (folder.parent / "slow").exists():
        time.sleep(0.05)
    time.sleep(0.05)
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", pa.table({"number": [task.payload]}))]))


def started(folder):
    """Return {task: nodes that began it}."""
    nodes = {}
    for path in folder.parent.glob("*-*-*-*"):
        number, node, _, _ = path.name.split("-")
        nodes.setdefault(int(number), []).append(node)
    return nodes


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)]))
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "node_ip_address": "127.0.0.2"})
    made.node = lambda: made.add_node(node_ip_address="127.0.0.3", **node)
    yield made
    made.shutdown()
    patch.undo()


@pytest.fixture
def second(cluster):
    node = cluster.node()
    cluster.wait_for_nodes(60)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


def run(cluster, folder, **changes):
    settings = {"workers": 0, "cpus_per_task": 1.0, "tasks_per_process": 100, **changes}
    with RayEngine(address=cluster.address, **settings) as engine:
        return run_phase(engine, folder, work, TASKS)


def values(commits):
    return [read_block(commit.blocks[0])["number"][0].as_py() for commit in commits]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_both_nodes_do_tasks_and_only_missing_ones(cluster, second, tmp_path):
    folder = tmp_path / "phase"
    assert values(run(cluster, folder)) == list(range(16))
    nodes = started(folder)
    assert sorted(nodes) == list(range(16))
    assert all(len(each) == 1 for each in nodes.values())
    assert len({node for each in nodes.values() for node in each}) == 2
    (folder / "000003.json").unlink()
    (tmp_path / "bad-3").touch()
    with pytest.raises(DataError, match=r"^row 3 is bad$"):
        run(cluster, folder)
    (tmp_path / "bad-3").unlink()
    assert values(run(cluster, folder, tasks_per_process=1)) == list(range(16))
    assert sum(map(len, started(folder).values())) == 18


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_node_that_dies_in_the_middle_costs_nothing_but_its_tasks(cluster, second, tmp_path):
    folder = tmp_path / "phase"
    (tmp_path / "slow").touch()
    dead = []

    def kill():
        while len({node for each in started(folder).values() for node in each}) < 2:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        dead.append(second)
        (tmp_path / "slow").unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    commits = run(cluster, folder)
    killer.join(60)
    assert dead
    assert values(commits) == list(range(16))
    assert max(map(len, started(folder).values())) == 2, "the task of the dead node was begun twice"


def test_no_cluster_at_the_address_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match=r"engine\.address=nowhere"):
        RayEngine(0, "nowhere", 1.0, 100)


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'llama-train\[ray\]'"):
        RayEngine(0, "", 1.0, 100)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_output_that_the_machines_do_not_share_is_an_error(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.engines.ray.load_commit", lambda folder, task: None)
    with pytest.raises(RunError, match=r"piece 0 was done, but .*share under the same path"):
        run(cluster, tmp_path / "phase")
