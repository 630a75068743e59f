"""What is decided before a job is submitted or its ranks start, without a cluster."""

import importlib.metadata
import os
import socket
import subprocess

import pytest

from launch import attempts, ray_node, runs, snapshot
from launch.address import port_of_job
from launch.config import read_job
from launch.slurm import node_counts
from llama_foundation.errors import ConfigError

SETTINGS = ["experiment=quickstart", "layout.micro_batch_size=1", "data.shards=/shards", "cluster=slurm_loopback"]


def test_copy_of_the_code_has_what_is_not_committed_and_not_what_git_ignores(tmp_path, monkeypatch) -> None:
    checkout, target = tmp_path / "checkout", tmp_path / "copy"
    files = {"llama_train/a.py": "1", "launch/new.py": "2", "launch/cache.pyc": "3", "runs/big.bin": "4"}
    for name, text in files.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    assert snapshot.copy_code(checkout, target) is None  # no checkout, but an installation
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / ".gitignore").write_text("*.pyc\n")
    subprocess.run(["git", "-C", checkout, "add", "llama_train"], check=True)
    (checkout / "llama_train" / "a.py").write_text("changed")
    assert snapshot.copy_code(checkout, target) == target
    copied = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert copied == {"llama_train/a.py": "changed", "launch/new.py": "2"}
    (checkout / "launch" / "new.py").write_text("key = 'planted-0123456789'")
    with pytest.raises(ConfigError, match=r"launch/new\.py holds the value of a secret"):
        snapshot.copy_code(checkout, tmp_path / "other", {"WANDB_API_KEY": "planted-0123456789"})
    monkeypatch.setattr(snapshot, "MOST_CODE_BYTES", 10)
    with pytest.raises(ConfigError, match=r"the largest is .*launch/new\.py.*copy_code=false"):
        snapshot.copy_code(checkout, tmp_path / "other", {})


def test_of_a_range_of_nodes_those_are_used_that_the_batch_divides_among() -> None:
    assert node_counts(read_job([*SETTINGS, "nodes=1-8"]), 2) == [1, 2, 4, 8]
    with pytest.raises(ConfigError, match=r"data\.batch_size=16"):
        node_counts(read_job([*SETTINGS, "nodes=1-3"]), 2)


def test_taken_port_is_passed_over_and_no_port_at_all_is_an_error_that_names_them() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert port_of_job(100, "127.0.0.1", taken, 100) == taken + next(
            number for number in range(1, 100) if free(taken + number)
        )
        with pytest.raises(ConfigError, match=rf"cluster\.slurm\.first_port={taken} to {taken} is taken"):
            port_of_job(7, "127.0.0.1", taken, 1)


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_bad_numbers_are_not_tried_again_and_a_stopped_run_says_so(tmp_path) -> None:
    attempts.begin(tmp_path, "7", "n1", 3)
    assert "numbers of the run are bad" in attempts.verdict(tmp_path, "7", 4, 3)[1]
    assert not attempts.verdict(tmp_path, "7", 4, 3)[0]
    assert runs.standing(tmp_path, []) == "its last attempt was cut off"
    attempts.end(tmp_path, "7", 4, 3, requeue=True)
    assert runs.standing(tmp_path, []).startswith("not queued again: the numbers of the run are bad")
    (tmp_path / attempts.STOP).write_text("")
    assert runs.standing(tmp_path, []).startswith("stopped on request")
    assert runs.standing(tmp_path, [runs.Row("7", "RUNNING", "-", "-", "1", "n1")]).endswith("was asked to stop")


def test_ray_without_tokens_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.51.2")
    with pytest.raises(ConfigError, match=r"Ray 2\.51\.2 has no token authentication"):
        ray_node.check_ray()


def test_token_is_new_every_time_and_only_the_owner_can_read_it(tmp_path) -> None:
    path, seen = tmp_path / "token", []
    before = os.umask(0)
    try:
        for _ in range(2):
            with ray_node.token_file(path):
                seen.append(path.read_text())
                assert path.stat().st_mode & 0o777 == 0o600
            assert not path.exists()
    finally:
        os.umask(before)
    assert len(set(seen)) == 2 and all(len(each) == 64 for each in seen)


def test_descendants_are_found_and_nobody_else() -> None:
    child = subprocess.Popen(["bash", "-c", "sleep 30 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    grandchild = int(child.stdout.readline())
    try:
        assert ray_node.descendants(child.pid) == [grandchild]
        assert grandchild in ray_node.descendants(os.getpid()) and os.getppid() not in ray_node.descendants(os.getpid())
    finally:
        os.kill(grandchild, 9)
        child.communicate(timeout=10)


def test_pipeline_on_ray_is_rendered_and_an_engine_of_one_machine_refused(capsys, tmp_path) -> None:
    from launch.batch import data

    common = ["cluster=slurm_loopback", "dry_run=true", "pipeline=quickstart", f"output={tmp_path / 'out'}"]
    assert data([*common, "nodes=2", "engine=ray", "input.paths=['/in/a b.jsonl']"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n" in script and "--interface=lo" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    with pytest.raises(ConfigError, match=r"engine=local: use engine=array or engine=ray"):
        data([*common, "input.paths=[a.jsonl]"])
