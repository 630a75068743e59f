"""The launcher without a cluster: command lines, scripts, decisions. tests/slurm runs jobs."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import address, attempts, preflight, runs, snapshot
from launch.__main__ import main
from launch.config import read_job, split
from launch.slurm import container_options, render
from llama_foundation.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]
SETTINGS = ["experiment=quickstart", "layout.micro_batch_size=1", "data.shards=/shards", "cluster=slurm_loopback"]


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llama-launch", *arguments])
    return main()


def test_command_line_is_split_and_the_rest_is_handed_on_unchanged() -> None:
    mine, others = split(["nodes=2", "model=3m", "+steps=3", "dry_run=true", "data.sources.nodes=1"])
    assert mine == ["nodes=2", "dry_run=true"]
    assert others == ["model=3m", "+steps=3", "data.sources.nodes=1"]


@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_script_is_shell_and_hands_every_argument_on_as_it_is(tmp_path, tasks) -> None:
    odd = ["data.shards=/a b/$(x)'`", "name=run", f"output={tmp_path}", f"cluster.slurm.tasks={tasks}"]
    job = read_job(["nodes=2000", *SETTINGS, "data.batch_size=4000", *odd[1:]])
    job.arguments.append(odd[0])
    script = render(job, 2, [2000], None)
    assert "#SBATCH --nodes=2000\n" in script
    assert f"#SBATCH --ntasks-per-node={1 if tasks == 'node' else 2}\n" in script
    listed = script[script.index("arguments=(") : script.index("\n)\n") + 3]
    shown = subprocess.run(
        ["bash", "-c", f'{listed} printf "%s\\n" "${{arguments[@]}}"'], capture_output=True, text=True
    )
    assert odd[0] in shown.stdout.splitlines()
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_container_is_given_to_srun_with_the_directories_that_it_needs(tmp_path) -> None:
    job = read_job([*SETTINGS, f"output={tmp_path}", "cluster.slurm.container_image=/images/train.sqsh"])
    options = shlex.split(container_options(job, job.train.cluster.slurm))
    assert "--container-image=/images/train.sqsh" in options
    assert f"{job.directory}:{job.directory}" in options[1]
    script = render(job, 2, [1], None)
    assert "--wait=60 --container-image=/images/train.sqsh" in script
    assert '\n    python "${arguments[@]}"' in script and f"python={sys.executable}\n" in script


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slurm", *SETTINGS, "nodes=3"], "data.batch_size=16"),
        (["slurm", *SETTINGS, "nodes=4-2"], "nodes=4-2"),
        (["slurm", *SETTINGS, "nodes=2", "layout.tensor=4"], "layout.tensor=4"),
        (["slurm", *SETTINGS, "cluster.slurm.partition='a;b'"], "cluster.slurm.partition"),
        (["slurm", *SETTINGS, "cluster.slurm.time=soon"], "cluster.slurm.time=soon"),
        (["slurm", *SETTINGS, "cluster.slurm.partion=a"], "partition"),
        (["slurm", *SETTINGS[:3]], "processes_per_node"),
        (["slurm", *SETTINGS, "output='/a b'"], "plain characters"),
        (["slurm", *SETTINGS], "no SLURM on this machine"),
        (["local", *SETTINGS, "nodes=2"], "this machine is one node"),
        (["hosts", *SETTINGS], "hosts=[]"),
        (["hosts", *SETTINGS, "hosts=[a,a]"], "names a host twice"),
        (["hosts", *SETTINGS, "hosts=[-oProxyCommand]"], "no name of a host"),
        (["local", *SETTINGS, "--multirun"], "settings only"),
        (["slrum"], "use one of local, slurm"),
        (["status", "run=/nowhere"], "run=/nowhere is no directory"),
    ],
)
def test_bad_input_is_one_line_that_names_it(monkeypatch, capsys, tmp_path, arguments, words) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, *arguments) in (2, 3)
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_hosts_talk_through_the_interface_asked_for(monkeypatch, capsys) -> None:
    assert called(monkeypatch, "hosts", *SETTINGS, "hosts=[a,b]", "processes_per_node=2", "cluster.interface=ib0") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert all(" && NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 " in line for line in lines) and len(lines) == 2


def test_hosts_prints_a_line_for_every_machine(monkeypatch, capsys) -> None:
    assert called(monkeypatch, "hosts", *SETTINGS, "hosts=[root@a,b]", "processes_per_node=2", "port=4000") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    words = [shlex.split(line) for line in lines]
    assert len(words) == 2
    for number, each in enumerate(words):
        assert f"--node={number}" in each and "--nodes=2" in each and "--address=a" in each and "--port=4000" in each
        assert each[each.index("llama_train") + 1 :] == SETTINGS


def attempt(job: str, began_after: int, status: int | None = 0) -> dict:
    return {"job": job, "nodes": "n1", "began_after": began_after, "status": status}


def checkpoint(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:08d}" / "index.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")


@pytest.mark.parametrize(
    ("history", "step", "expected"),
    [
        ([], 0, 0),
        ([attempt("7", 0)], 0, 1),
        ([attempt("7", 0)], 20, 0),
        ([attempt("7", 0), attempt("7", 20, None), attempt("7", 20)], 20, 2),
        ([attempt("6", 20), attempt("7", 20)], 20, 1),  # another job's attempts do not count
    ],
)
def test_attempts_without_progress_are_those_since_the_newest_checkpoint(history, step, expected) -> None:
    assert attempts.without_progress(history, "7", step) == expected


def test_verdict_goes_on_after_machine_trouble_and_stops_at_the_end_a_real_error_or_the_limit(tmp_path) -> None:
    checkpoint(tmp_path, 20)
    attempts.begin(tmp_path, "7", "n1", 2)
    checkpoint(tmp_path, 40)
    assert attempts.verdict(tmp_path, "7", 0, 2) == (True, "asked to stop; goes on after step 40")
    assert attempts.verdict(tmp_path, "7", 3, 2)[0]
    assert "a setting or a file is wrong" in attempts.verdict(tmp_path, "7", 2, 2)[1]
    for _ in range(2):
        attempts.begin(tmp_path, "7", "n1", 2)
    assert attempts.verdict(tmp_path, "7", 3, 2) == (
        False,
        "not queued again: 2 attempts have brought no checkpoint beyond step 40",
    )
    with pytest.raises(RunError, match="beyond step 40"):
        attempts.begin(tmp_path, "7", "n1", 2)
    attempts.begin(tmp_path, "8", "n1", 2)
    (tmp_path / attempts.STOP).write_text("")
    assert "stopped by llama-launch stop" in attempts.verdict(tmp_path, "8", 0, 2)[1]
    (tmp_path / "summary.json").write_text(json.dumps({"finished": True}))
    assert attempts.verdict(tmp_path, "8", 0, 2) == (False, "finished after step 40")


def test_secrets_stay_out_of_what_is_kept(monkeypatch) -> None:
    environment = {"WANDB_API_KEY": "0123456789abcdef", "NCCL_DEBUG": "INFO", "TORCH_TOKEN": "f" * 20, "HOME": "/root"}
    environment["PATH"] = "/bin:/opt/0123456789abcdef"
    assert snapshot.kept_environment(environment) == {"NCCL_DEBUG": "INFO", "PATH": "/bin:/opt/[hidden]"}
    assert snapshot.hide("+key = '0123456789abcdef'", environment) == "+key = '[hidden]'"
    with pytest.raises(ConfigError, match=r"logging\.project.*secret"):
        snapshot.refuse_secrets(["steps=1", "logging.project=0123456789abcdef"], environment)


def test_address_is_that_of_the_interface_or_refused() -> None:
    assert address.address("lo", alone=False) == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"cluster\.interface=none0.* lo"):
        address.address("none0", alone=False)


def test_name_that_means_only_this_machine_is_refused_for_several(monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with pytest.raises(ConfigError, match=r"localhost.*set cluster\.interface"):
        address.address(None, alone=False)
    assert address.address(None, alone=True) == "127.0.0.1"


def test_meeting_place_listens_on_its_address_alone_and_a_taken_port_is_named() -> None:
    from datetime import timedelta

    from llama_train.distributed import serve

    port = address.free_port()
    store = serve("127.0.0.1", port, 2, timedelta(seconds=5))
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    where = [each[1].split(":")[0] for each in listening if each[3] == "0A" and each[1].endswith(f":{port:04X}")]
    assert where == ["0100007F"]  # 127.0.0.1, as /proc/net/tcp writes it
    with pytest.raises(RunError, match=f"port {port}.*[Aa]lready in use"):
        serve("127.0.0.1", port, 2, timedelta(seconds=5))
    del store


def agent(directory: Path, program: str, processes: int = 2) -> subprocess.Popen:
    (directory / "program.py").write_text(program)
    command = [sys.executable, "-m", "launch.torchrun", f"--processes={processes}", f"--port={address.free_port()}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment["PYTHONPATH"] = f"{ROOT}:{directory}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "program"], env=environment, **pipes)


def test_status_is_that_of_the_rank_that_failed_and_nothing_is_said_twice(tmp_path) -> None:
    program = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('error: mine')\ntime.sleep(60)\n"
    process = agent(
        tmp_path, program.replace("sys.exit('error: mine')", "print('error: mine', file=sys.stderr), exit(2)")
    )
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, "error: mine\n")


@pytest.mark.parametrize("early", [True, False])
def test_signal_waits_for_the_ranks_which_take_the_time_they_need(tmp_path, early) -> None:
    program = (
        "import signal, sys, time\n"
        "from llama_train.survive.signals import remember_stop\n"
        "print('ready', flush=True)\n"
        "time.sleep(1)\n"  # imports
        "remember_stop()\n"
        "from llama_train.survive.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    while not stop.requested:\n"
        "        time.sleep(0.01)\n"
        "    time.sleep(1)\n"
        "    sys.stdout.write('saved\\n')\n"
    )
    process = agent(tmp_path, program)
    lines = []
    if early:  # before there are ranks
        held = re.compile(rf"^SigBlk:\t[0-9a-f]*{1 << (signal.SIGUSR1 - 1):04x}$", re.MULTILINE)
        while not held.search(Path(f"/proc/{process.pid}/status").read_text()):
            time.sleep(0.01)
    else:
        lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGUSR1)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, "".join(lines) + printed, said) == (0, "ready\nready\nsaved\nsaved\n", "")


def test_status_tells_attempts_and_progress_without_a_cluster(monkeypatch, capsys, tmp_path) -> None:
    attempts.begin(tmp_path, "7", "n[1-2]", 3)
    checkpoint(tmp_path, 40)
    records = [{"step": 41, "loss": 2.5, "tokens_per_second": 1234.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records) + '{"step": 4')
    assert runs.status(runs.RunsConfig(run=str(tmp_path))) == 0
    shown = capsys.readouterr().out
    assert "attempt 1: job 7 on n[1-2], step 0 to ?, no end written" in shown
    assert "newest checkpoint: step 40" in shown and "last step: 41, loss 2.5000, 1,234 tokens/s" in shown


def fake_nvidia_smi(directory: Path, errors: list[int]) -> None:
    program = directory / "nvidia-smi"
    lines = "".join(f"echo '{number}, {count}'\n" for number, count in enumerate(errors))
    program.write_text(f"#!/bin/sh\n{lines}")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("errors", "words"),
    [([0, 0], None), ([0], "1 GPUs, 2 needed"), ([0, 3], "GPU 1 has had 3 uncorrected memory errors")],
)
def test_node_with_bad_or_missing_gpus_ends_the_job_before_it_starts(monkeypatch, tmp_path, errors, words) -> None:
    fake_nvidia_smi(tmp_path, errors)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if words is None:
        assert preflight.preflight(tmp_path, 2) == []
        assert [path.name for path in tmp_path.iterdir()] == ["nvidia-smi"]
    else:
        with pytest.raises(RunError, match=words):
            preflight.preflight(tmp_path, 2)


def test_node_that_does_not_see_the_run_directory_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=rf"{socket.gethostname()}: cannot write in .*/nowhere"):
        preflight.preflight(tmp_path / "nowhere", 0)


def test_clock_far_from_the_file_servers_is_a_warning(monkeypatch, tmp_path) -> None:
    now = time.time()
    monkeypatch.setattr(preflight.time, "time", lambda: now - 60)
    [warning] = preflight.preflight(tmp_path, 0)
    assert "-60 s off" in warning


@pytest.mark.parametrize(
    "arguments", [["launch", "status", "run=/nowhere"], ["llama_train", "steps=0", "data.shards=x"]]
)
def test_what_is_made_cannot_be_written_by_every_user_under_any_umask(tmp_path, arguments) -> None:
    """Of a file that the process makes as its last act."""
    made = tmp_path / "made"
    program = (
        f"import atexit, pathlib, runpy; atexit.register(pathlib.Path({str(made)!r}).touch)\n"
        f"runpy.run_module({arguments[0]!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", program, *arguments[1:]], umask=0, capture_output=True, cwd=ROOT)
    assert made.stat().st_mode & 0o007 == 0o004
