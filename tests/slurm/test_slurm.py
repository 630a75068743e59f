"""Jobs on a real SLURM (slurm_cluster.py): what a cluster's user does, and what happens to the jobs."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_for
from slurm_settings import settings_for

from launch.attempts import newest_step, read_attempts
from launch.snapshot import PACKAGES
from llama_foundation import compose
from llama_train.__main__ import _lead
from llama_train.config import TrainConfig
from llama_train.distributed import meet
from llama_train.evaluate.__main__ import main as evaluate

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
ROOT = Path(__file__).parents[2]
TWO = ("nodes=2", "layout.micro_batch_size=1")
PLANTED = "planted-secret-0123456789"


def submitted(result) -> str:
    """Return the job id that llama-launch printed."""
    assert result.returncode == 0, result.stderr
    return re.search(r"^job (\d+):", result.stdout, re.MULTILINE)[1]


def ended(slurm: Cluster, job: str, run: Path, seconds: float = 150) -> str:
    """Wait for the job's end and return its state."""
    until(slurm, run, lambda: slurm.state(job) in ENDED, seconds, f"the end of job {job}")
    return slurm.state(job)


def trains(slurm: Cluster, job: str, run: Path, step: int, seconds: float = 90) -> None:
    """Wait until the run has a checkpoint of `step` or a later one."""
    until(slurm, run, lambda: newest_step(run) >= step or slurm.state(job) in ENDED, seconds, f"step {step}")
    assert newest_step(run) >= step, log(run)


def until(slurm: Cluster, run: Path, condition, seconds: float, what: str) -> None:
    try:
        wait_for(condition, seconds, what)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{slurm.run('squeue').stdout}\n{log(run)}\n{slurm.log()}") from None


def log(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(run.glob("logs/slurm-*.out")))


def idle(slurm: Cluster, count: int) -> None:
    """Wait until so many nodes have nothing to do."""
    command = ("sinfo", "-h", "-N", "-o", "%T")  # -t idle would list drained ones too
    wait_for(lambda: slurm.run(*command).stdout.split().count("idle") == count, 40, f"{count} idle nodes")


def losses(run: Path) -> dict[int, float]:
    """Step -> loss; of a step done twice, the last time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def long(settings: list[str], steps: int) -> list[str]:
    """A run that lasts long enough to be disturbed, with a checkpoint every 20 steps."""
    return [*settings, "schedule=constant", f"steps={steps}", "checkpoint.every=20", "logging.console=none"]


@pytest.fixture(scope="module")
def reference(launch, shards, tmp_path_factory) -> dict[int, float]:
    """The losses of the same run in one process, without SLURM."""
    directory = tmp_path_factory.mktemp("alone")
    alone = launch("local", *settings_for(shards, directory), "cluster=cpu", "processes_per_node=1")
    assert alone.returncode == 0, alone.stderr
    return losses(directory / "run")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout of this project for a test to break."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "--quiet", directory], check=True)
    return directory


@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_two_nodes_of_two_ranks_compute_what_one_process_does(
    slurm, launch, settings, tmp_path, reference, checkout, tasks
) -> None:
    run = tmp_path / "run"
    hold = "cluster.slurm.options=['--hold']"
    asked = launch("slurm", *TWO, f"cluster.slurm.tasks={tasks}", hold, *settings, secret=PLANTED, checkout=checkout)
    job = submitted(asked)
    broken = checkout / "llama_train" / "train.py"
    good = broken.read_text()
    broken.write_text("raise SystemExit('the checkout has changed since')\n")  # what runs is the copy
    slurm.run("scontrol", "release", job).check_returncode()
    state = ended(slurm, job, run)
    broken.write_text(good)
    assert state == "COMPLETED", log(run)
    assert "finished after step 12" in log(run)
    assert losses(run) == pytest.approx(reference, rel=1e-4)
    assert len(losses(run)) == 12
    written = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in written if PLANTED.encode() in path.read_bytes()] == []
    assert [path for path in [run, *run.rglob("*")] if path.stat().st_mode & 0o002] == []
    row = re.compile(rf"^{job} +COMPLETED +0:0 .* 2 +n\[", re.MULTILINE)  # the exit code is sacct's, which lags
    until(slurm, run, lambda: row.search(launch("status", f"run={run}").stdout), 15, "sacct's row in status")
    assert "last step: 12" in launch("status", f"run={run}").stdout


def agents_of(run: Path) -> list[str]:
    """The processes, on any node, that hold warnings back for the ranks of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            ours = "launch.torchrun" in words and "launch.hold" not in words and f"output={run.parent}" in words
            found += [path.parent.name] if ours else []
    return found


def test_requeued_job_goes_on_where_it_was(slurm, launch, settings, tmp_path) -> None:
    run = tmp_path / "run"
    job = submitted(launch("slurm", *TWO, *long(settings, 200)))
    # A warning while the ranks still start ends them in order, and they come back.
    until(slurm, run, lambda: len(agents_of(run)) == 2, 60, "an agent on both nodes")
    slurm.run("scancel", "--signal=USR1", job).check_returncode()
    until(slurm, run, lambda: len(read_attempts(run)) == 2, 90, "a second attempt")
    first = read_attempts(run)[0]
    assert (first["status"], first["ended_after"]) == (0, 0) and "asked to stop" in first["verdict"], log(run)
    trains(slurm, job, run, 20)
    second = launch("slurm", *TWO, *long(settings, 200))
    assert second.returncode == 2 and f"has job {job} already (RUNNING)" in second.stderr
    slurm.run("scontrol", "requeue", job).check_returncode()
    assert ended(slurm, job, run) == "COMPLETED", log(run)
    first, *_, last = read_attempts(run)
    assert (first["began_after"], last["ended_after"]) == (0, 200)
    assert last["began_after"] >= 20
    assert sorted(losses(run)) == list(range(1, 201))


def test_warning_ahead_of_the_time_limit_makes_a_checkpoint_and_a_new_attempt(
    slurm, launch, settings, tmp_path
) -> None:
    run = tmp_path / "run"
    # SLURM looks at limits every 30 s or so: the warning comes 45 to 75 s after the start, when the ranks surely train.
    limit = ("cluster.slurm.time=2", "cluster.slurm.warning_seconds=75")
    job = submitted(launch("slurm", *TWO, *limit, *long(settings, 100_000), "checkpoint.every=100000"))
    until(slurm, run, lambda: len(read_attempts(run)) == 2, 180, "a second attempt")
    first, second = read_attempts(run)
    assert first["status"] == 0
    assert second["began_after"] == first["ended_after"] > 0  # by the warning: no other checkpoint was due
    assert "asked to stop" in log(run)
    until(slurm, run, lambda: max(losses(run)) > second["began_after"], 60, "a step of the second attempt")
    assert f"job {job}: asked to write a checkpoint and end" in launch("stop", f"run={run}").stdout
    assert ended(slurm, job, run) == "COMPLETED", log(run)
    assert "stopped by llama-launch stop" in log(run)
    assert newest_step(run) == max(losses(run)) > second["began_after"]
    shown = launch("status", f"run={run}").stdout
    assert re.search(rf"^{job} +COMPLETED", shown, re.MULTILINE) and "\nstate: stopped on request;" in shown, shown


def test_dead_nodes_are_replaced_or_done_without_and_the_run_finishes(slurm, launch, settings, tmp_path) -> None:
    run = tmp_path / "run"
    slurm.run("scontrol", "update", "nodename=n4", "state=drain", "reason=test").check_returncode()
    idle(slurm, 3)  # with fewer it would start at once, too
    job = submitted(
        launch("slurm", "nodes=1-4", "layout.micro_batch_size=1", *long(settings, 400), "data.batch_size=8")
    )
    dead = []
    try:
        for _ in range(2):  # of n1 to n3, two of which are used, one is left
            trains(slurm, job, run, newest_step(run) + 20, 120)
            nodes = slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
            dead.append(slurm.run("scontrol", "show", "hostnames", nodes).stdout.split()[1])
            slurm.kill_node(dead[-1])
            time.sleep(0.5)  # for a checkpoint that was all but there
        assert ended(slurm, job, run, 150) == "COMPLETED", log(run)
        attempts = read_attempts(run)
        shown = [slurm.run("scontrol", "show", "hostnames", each["nodes"]).stdout.split() for each in attempts]
        assert len(shown[0]) == 3 and any(len(each) == 2 and dead[0] not in each for each in shown[1:])
        assert len(shown[-1]) == 1 and shown[-1][0] not in dead
        assert all(f"{used} nodes are used" in log(run) for used in ("2 of 3", "2 of 2", "1 of 1")), log(run)
        assert attempts[-1]["ended_after"] == 400 and attempts[-1]["began_after"] >= 40
        assert sorted(losses(run)) == list(range(1, 401))
    finally:
        for name in dead:
            slurm.start_node(int(name[1:]))
        slurm.run("scontrol", "update", "nodename=n4", "state=resume")
        idle(slurm, 4)


def test_scancel_leaves_a_checkpoint_of_the_last_step_and_does_not_come_back(slurm, launch, settings, tmp_path) -> None:
    run = tmp_path / "run"
    job = submitted(launch("slurm", *TWO, *long(settings, 100_000)))
    trains(slurm, job, run, 20)
    slurm.run("scancel", job).check_returncode()
    assert ended(slurm, job, run) == "CANCELLED"
    queue = ("squeue", "-h", "-j", job, "-t", "completing,pending,running", "-o", "%i")
    until(slurm, run, lambda: not slurm.run(*queue).stdout.strip(), 40, "the end of its processes")
    step = newest_step(run)
    again = launch("local", *long(settings, 100_000), "cluster=cpu", "processes_per_node=1", f"stop_at_step={step + 1}")
    assert again.returncode == 0, again.stderr
    assert sorted(losses(run)) == list(range(1, step + 2))  # no step was lost or done without being kept


def test_error_of_the_user_ends_the_job_at_once(slurm, launch, settings, tmp_path) -> None:
    run = tmp_path / "run"
    missing = f"data.shards={tmp_path}/missing"
    job = submitted(launch("slurm", *TWO, *settings, missing))
    assert ended(slurm, job, run) == "FAILED"
    assert re.findall(r"^error: .*", log(run), re.MULTILINE) == re.findall(rf"^error: {missing[12:]}.*", log(run), re.M)
    assert len(re.findall(r"^error: ", log(run), re.MULTILINE)) == 1 and "Traceback" not in log(run), log(run)
    assert f"{tmp_path}/missing" in log(run) and "not queued again" in log(run)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.slurm.partition=nowhere", "cluster.slurm.partition=nowhere"),
        ("cluster.slurm.account=nobody", "cluster.slurm.account=nobody"),
        ("nodes=9", "nodes"),
        ("cluster.slurm.gpus_per_node=8", "gpus_per_node"),
    ],
)
def test_what_slurm_refuses_is_said_with_the_setting(launch, settings, setting, words) -> None:
    refused = launch("slurm", *settings, "data.batch_size=18", "layout.micro_batch_size=1", setting)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "SLURM does not take the job" in refused.stderr and words in refused.stderr.rpartition("(")[2]


def test_what_nodes_refuse_is_said_within_seconds(slurm, launch, settings, tmp_path) -> None:
    settings = [each for each in settings if not each.startswith("output=")]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        cases = {
            "n1 unseen": (slurm.unshared, ["cluster.slurm.options=['--nodelist=n1']"]),
            "n4 unseen": (slurm.half_shared, [*TWO, "cluster.slurm.options=['--nodelist=n[3-4]']"]),
            "port": (tmp_path / "a", [f"cluster.slurm.first_port={taken}", "cluster.slurm.port_count=1"]),
            "gpus": (tmp_path / "b", ["cluster.device=cuda"]),
        }
        jobs = {
            name: submitted(launch("slurm", "layout.micro_batch_size=1", *settings, *own, f"output={output}"))
            for name, (output, own) in cases.items()
        }
        said = {}
        for name, job in jobs.items():
            run = cases[name][0] / "run"
            assert ended(slurm, job, run, 30) == "FAILED"
            said[name] = [line for line in log(run).splitlines() if line.startswith("error: ")]
    run = slurm.unshared / "run"
    until(slurm, run, lambda: "could not open the log" in launch("status", f"run={run}").stdout, 15, "sacct's row")
    run = slurm.half_shared / "run"
    assert said["n4 unseen"] == [
        f"error: n4: cannot write in {run} (No such file or directory); output must be a directory that all nodes share"
    ]
    assert len(said["port"]) == 1 and f"cluster.slurm.first_port={taken} to {taken} is taken" in said["port"][0]
    assert len(said["gpus"]) == 1 and "0 GPUs, 2 needed" in said["gpus"][0]


def test_doctor_finds_nothing_wrong_with_four_nodes_and_measures_them(launch, tmp_path) -> None:
    found = launch(
        "doctor", "cluster=slurm_loopback", "nodes=4", "processes_per_node=1", f"directory={tmp_path}", "megabytes=4"
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.findall(r"^(n\d) ", found.stdout, re.MULTILINE) == ["n1", "n2", "n3", "n4"]
    assert found.stdout.count("all-reduce of 4 nodes") == 1 and "all-reduce of 2 nodes" in found.stdout
    assert "nothing wrong" in found.stdout
    assert [path.name for path in tmp_path.glob(".health-*")] == []


def test_sweep_of_four_runs_on_the_nodes_and_is_compared(slurm, launch, settings, tmp_path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    rates = "optimizer.learning_rate=1e-3,3e-3,1e-2,3e-2"
    plain = [each for each in settings if not each.startswith("optimizer.")]
    swept = launch("sweep", "where=slurm", "at_once=4", *plain, rates, "cluster.processes_per_node=null")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    runs = sorted(path.parent for path in tmp_path.glob("run-*/summary.json"))
    assert len(runs) == 4
    assert all(json.loads((run / "summary.json").read_text())["finished"] for run in runs)
    assert swept.stdout.count("finished") == 4
    assert (tmp_path / "run-comparison.html").is_file()


DATA = ["pipeline=quickstart", "tokenizer=sentencepiece_4k", "input.language_column=lang"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    """llama-data's settings for a small part of the example corpus."""
    import io

    import zstandard

    directory = tmp_path_factory.mktemp("corpus")
    for path in sorted((ROOT / "examples" / "corpus").glob("*.jsonl.zst")):
        with open(path, "rb") as file:
            lines = list(io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"))
        (directory / path.stem).write_text("".join(lines[:120]))
    return [*DATA, f"input.paths=[{directory}/*.jsonl]", "tokenizer.train.vocabulary_size=2000"]


@pytest.fixture(scope="module")
def local_shards(corpus, tmp_path_factory, launch) -> Path:
    """What the local engine makes of the corpus."""
    output = tmp_path_factory.mktemp("local") / "shards"
    command = [sys.executable, "-m", "data_pipeline", *corpus, f"output={output}", "workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return output


def contents(shards: Path) -> dict[str, bytes]:
    """Place -> bytes of all that training reads."""
    found = [path for part in ("train", "validation", "tokenizer") for path in (shards / part).rglob("*.*")]
    return {str(path.relative_to(shards)): path.read_bytes() for path in [*found, shards / "shards.json"]}


def batch_job(slurm: Cluster, result, files: Path, while_it_runs=lambda: None) -> str:
    """Wait until a job of llama-launch data or evaluate, or all of its array, has ended; return what it said."""
    assert result.returncode == 0, result.stderr
    job = re.search(r"^job (\d+):", result.stdout)[1]
    queue = ("squeue", "-h", "-j", job, "-t", "pending,running,completing", "-o", "%i")

    def over() -> bool:
        while_it_runs()
        return not slurm.run(*queue).stdout.strip()

    try:
        wait_for(over, 200, f"job {job}")
    except TimeoutError as error:
        raise AssertionError(f"{error}\n" + "\n".join(path.read_text() for path in files.glob("*.out"))) from None
    return "\n".join(path.read_text() for path in files.glob("*.out"))


def test_pipeline_as_an_array_on_two_nodes_gives_the_local_engines_bytes(
    slurm, launch, corpus, local_shards, tmp_path
) -> None:
    shards = tmp_path / "shards"
    submit = launch("data", "cluster=slurm_loopback", "nodes=2", "engine=array", *corpus, f"output={shards}")
    said = batch_job(slurm, submit, tmp_path / "shards-jobs")
    assert contents(shards) == contents(local_shards), said


STRANGER = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); print('welcome')"


def test_pipeline_on_ray_gives_the_local_engines_bytes_and_lets_nobody_else_in(
    slurm, launch, corpus, local_shards, tmp_path
) -> None:
    pytest.importorskip("ray")
    shards, files = tmp_path / "shards", tmp_path / "shards-jobs"
    one = "cluster.slurm.cpus_per_node=1"
    submit = launch("data", "cluster=slurm_loopback", "nodes=2", "engine=ray", one, *corpus, f"output={shards}")
    head = f"127.0.0.1:{20000 + int(re.search(r'^job (.+):', submit.stdout)[1])}"
    joined: set[str] = set()
    seen: list = []

    def look() -> None:
        for log in Path(tempfile.gettempdir()).glob("ray-*/start-n*.log"):
            with contextlib.suppress(FileNotFoundError):
                joined.update({log.stem} if "Ray runtime started" in log.read_text() else ())
        if len(joined) == 2 and not seen:
            [path] = files.glob("ray-token-*")
            environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
            command = [sys.executable, "-c", STRANGER, head]
            with open(tmp_path / "stranger", "w") as refusal:  # Ray itself tries for minutes
                stranger = subprocess.Popen(command, env=environment, stderr=refusal, stdout=refusal)
            seen.extend([path.stat().st_mode & 0o777, path.read_bytes(), stranger])

    said = batch_job(slurm, submit, files, look)
    assert contents(shards) == contents(local_shards), said
    assert "has left the Ray cluster" not in said, said
    mode, token, stranger = seen
    stranger.kill()
    stranger.wait()
    refusal = (tmp_path / "stranger").read_text()
    assert "InvalidAuthToken" in refusal and "welcome" not in refusal, refusal
    assert (mode, len(token)) == (0o600, 64)
    written = [path for path in [*files.rglob("*"), *shards.rglob("*")] if path.is_file()]
    assert [path for path in written if token in path.read_bytes()] == []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # not ours to read, or it has just ended
            assert f"{files}/ray-token".encode() not in path.read_bytes(), path


def test_evaluation_as_a_job_gives_the_numbers_of_one_process(
    slurm, launch, local_shards, tmp_path, monkeypatch
) -> None:
    model = ["model=tiny", "model.vocab_size=2000", "model.context=64", f"data.shards={local_shards}"]
    batch = ["data.sequence_length=64", "data.batch_size=2", "steps=1", "logging.report=false"]
    config = compose.compose("train", TrainConfig, [*model, *batch, "cluster=cpu", f"output={tmp_path}", "name=run"])
    assert _lead(config, meet(10), 1, {}) == 0
    asked = [f"checkpoint={tmp_path / 'run'}", f"shards={local_shards}", "documents=4", "device=cpu"]
    said = batch_job(
        slurm,
        launch("evaluate", "cluster=slurm_loopback", *asked, f"output={tmp_path / 'job.json'}"),
        tmp_path / "jobs",
    )
    monkeypatch.setattr(sys, "argv", ["llama-evaluate", *asked, f"output={tmp_path / 'alone.json'}"])
    assert evaluate() == 0
    job, alone = (json.loads((tmp_path / f"{name}.json").read_text())["held_out"] for name in ("job", "alone"))
    assert job["all"] == pytest.approx(alone["all"], rel=1e-5), said
