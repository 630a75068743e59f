"""`llama-launch hosts start=true` over a real sshd with throwaway keys: two hosts, 127.0.0.2 and 127.0.0.3."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.address import free_port
from llama_train.prove.harness import make_shards

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
HOSTS = ("127.0.0.2", "127.0.0.3")

pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(os.geteuid() != 0 or SSHD is None, reason="needs root and openssh-server"),
]


@pytest.fixture(scope="module")
def ssh(tmp_path_factory) -> Iterator[Path]:
    """A directory with an `ssh` that knows the two hosts; the machine's own settings and keys are not touched."""
    directory = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    (directory / "sshd_config").write_text(
        "".join(f"ListenAddress {host}\n" for host in HOSTS)
        + f"Port {port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nAcceptEnv PYTHONPATH OMP_NUM_THREADS\n"
    )
    (directory / "ssh_config").write_text(
        f"Host 127.0.0.*\n  Port {port}\n  IdentityFile {directory}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {directory}/known\n  StrictHostKeyChecking accept-new\n"
        "  SendEnv PYTHONPATH OMP_NUM_THREADS\n  LogLevel ERROR\n"
    )
    real = shutil.which("ssh")
    wrapper = directory / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {real} -F {directory}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    log = directory / "sshd.log"
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", directory / "sshd_config"], stderr=log.open("w"))
    deadline = time.monotonic() + 20
    while "listening on" not in log.read_text():
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    yield wrapper.parent
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    make_shards(directory, 101, 20_000, validation_tokens=4_000)
    return directory


@pytest.fixture
def start(ssh, shards, tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a run of one rank on each host; returns the launcher's process."""
    started = []

    def call(*more: str, hosts: str = ",".join(HOSTS), cwd: Path = ROOT) -> subprocess.Popen:
        settings = [
            *("model=tiny", "model.vocab_size=101", "model.context=32", f"data.shards={shards}", "cluster=cpu"),
            *("data.sequence_length=32", "data.batch_size=4", "layout.micro_batch_size=1", "schedule=constant"),
            *("optimizer.learning_rate=1e-2", "steps=6", "checkpoint.every=3", "logging.report=false"),
            *("logging.console=lines", f"output={tmp_path}", "name=run"),
        ]
        command = [sys.executable, "-m", "launch", "hosts", f"hosts=[{hosts}]", "start=true", "processes_per_node=1"]
        environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{ssh}:{environment['PATH']}"
        process = subprocess.Popen(
            [*command, f"port={free_port()}", *settings, *more],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def ranks(run: Path) -> list[int]:
    """Processes whose command line names the run, other than the launcher and ssh."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"output={run.parent}" in words and "llama_train" in words:
            found.append(int(directory.name))
    return found


def test_two_hosts_train_one_run_to_its_end(start, tmp_path) -> None:
    process = start()
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["finished"], summary["steps"]) == (True, 6)
    assert "data_shard=2" in said


def test_ctrl_c_writes_a_checkpoint_on_all_hosts(start, tmp_path) -> None:
    process = start("steps=100000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "step-00000003" / "index.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "asked to stop by SIGINT" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (tmp_path / "run" / "checkpoints" / f"step-{summary['steps']:08d}" / "index.json").exists()
    assert ranks(tmp_path / "run") == []


def test_when_one_host_fails_the_others_end_and_it_is_named(start, tmp_path) -> None:
    process = start("steps=100000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "step-00000003" / "index.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    for pid in ranks(tmp_path / "run"):  # the second host's agent and rank
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        if f"SSH_CONNECTION={HOSTS[0]}" not in " ".join(words) and any(
            word.startswith("SSH_CONNECTION=") and f" {HOSTS[1]} " in word for word in words
        ):
            os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=150)
    assert process.returncode not in (0, None), said
    assert f"{HOSTS[1]}: status" in said
    assert ranks(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        (f"{HOSTS[0]},127.0.0.4", "127.0.0.4 cannot be reached by ssh (ssh: connect to host 127.0.0.4"),
        ("nobody@127.0.0.2,127.0.0.3", "nobody@127.0.0.2 cannot be reached by ssh"),
    ],
)
def test_a_host_that_cannot_be_reached_is_named_before_anything_starts(start, tmp_path, hosts, words) -> None:
    process = start(hosts=hosts)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n")) == (3, 1), said
    assert said.startswith(f"error: {words}") and "Nothing was started" in said
    assert not (tmp_path / "run").exists()


def test_a_host_without_the_interpreter_is_named(start) -> None:
    process = start("cluster.slurm.python=/nowhere/python")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"{HOSTS[0]} has no /nowhere/python; {HOSTS[1]} has no /nowhere/python" in said
