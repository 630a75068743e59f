"""Jobs on a real SLURM (slurm_cluster.py): what a cluster's user does, and what happens to the jobs."""

import json
import re
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_for
from slurm_settings import settings_for

from launch.attempts import newest_step, read_attempts

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


@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_two_nodes_of_two_ranks_compute_what_one_process_does(
    slurm, launch, settings, tmp_path, reference, tasks
) -> None:
    run = tmp_path / "run"
    job = submitted(launch("slurm", *TWO, f"cluster.slurm.tasks={tasks}", *settings, secret=PLANTED))
    assert ended(slurm, job, run) == "COMPLETED", log(run)
    assert "finished after step 12" in log(run)
    assert losses(run) == pytest.approx(reference, rel=1e-4)
    assert len(losses(run)) == 12
    written = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in written if PLANTED.encode() in path.read_bytes()] == []
    assert [path for path in [run, *run.rglob("*")] if path.stat().st_mode & 0o002] == []
    row = re.compile(rf"^{job} +COMPLETED +0:0 .* 2 +n\[", re.MULTILINE)  # the exit code is sacct's, which lags
    until(slurm, run, lambda: row.search(launch("status", f"run={run}").stdout), 15, "sacct's row in status")
    assert "last step: 12" in launch("status", f"run={run}").stdout


def test_requeued_job_goes_on_where_it_was(slurm, launch, settings, tmp_path) -> None:
    run = tmp_path / "run"
    job = submitted(launch("slurm", *TWO, *long(settings, 200)))
    trains(slurm, job, run, 20)
    second = launch("slurm", *TWO, *long(settings, 200))
    assert second.returncode == 2 and f"has job {job} already (RUNNING)" in second.stderr
    slurm.run("scontrol", "requeue", job).check_returncode()
    assert ended(slurm, job, run) == "COMPLETED", log(run)
    first, second = read_attempts(run)
    assert (first["began_after"], second["ended_after"]) == (0, 200)
    assert second["began_after"] >= 20
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


def test_dead_node_is_replaced_and_the_run_finishes(slurm, launch, settings, tmp_path) -> None:
    run = tmp_path / "run"
    job = submitted(launch("slurm", *TWO, *long(settings, 200)))
    trains(slurm, job, run, 20)
    nodes = slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    victim = slurm.run("scontrol", "show", "hostnames", nodes).stdout.split()[-1]
    slurm.kill_node(victim)
    try:
        assert ended(slurm, job, run, 200) == "COMPLETED", log(run)
        attempts = read_attempts(run)
        assert len(attempts) >= 2 and attempts[-1]["ended_after"] == 200
        assert attempts[1]["began_after"] >= 20
        last = slurm.run("scontrol", "show", "hostnames", attempts[-1]["nodes"]).stdout.split()
        assert len(last) == 2 and victim not in last
    finally:
        slurm.start_node(int(victim[1:]))
        wait_for(lambda: len(slurm.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").stdout.split()) == 4, 40, "nodes")


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
        ("nodes=9", "nodes"),
        ("cluster.slurm.gpus_per_node=8", "gpus_per_node"),
    ],
)
def test_what_slurm_refuses_is_said_with_the_setting(launch, settings, setting, words) -> None:
    refused = launch("slurm", *settings, "data.batch_size=18", "layout.micro_batch_size=1", setting)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "SLURM does not take the job" in refused.stderr and words in refused.stderr.rpartition("(")[2]


def test_doctor_finds_nothing_wrong_with_four_nodes_and_measures_them(launch, tmp_path) -> None:
    found = launch(
        "doctor", "cluster=slurm_loopback", "nodes=4", "processes_per_node=1", f"directory={tmp_path}", "megabytes=4"
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.findall(r"^(n\d) ", found.stdout, re.MULTILINE) == ["n1", "n2", "n3", "n4"]
    assert found.stdout.count("all-reduce in groups of 4 nodes") == 1 and "groups of 2 nodes" in found.stdout
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


def test_pipeline_on_two_nodes_writes_shards_that_verify(slurm, launch, corpus, tmp_path) -> None:
    shards = tmp_path / "shards"
    submit = launch("data", "cluster=slurm_loopback", "nodes=2", "engine=array", *corpus, f"output={shards}")
    assert submit.returncode == 0, submit.stderr
    files = tmp_path / "shards-jobs"
    job = re.search(r"^job (\d+):", submit.stdout)[1]
    queue = ("squeue", "-h", "-j", job, "-t", "pending,running,completing", "-o", "%i")
    try:
        wait_for(lambda: not slurm.run(*queue).stdout.strip(), 200, f"job {job}")
    except TimeoutError as error:
        raise AssertionError(f"{error}\n" + "\n".join(path.read_text() for path in files.glob("*.out"))) from None
    said = "\n".join(path.read_text() for path in files.glob("*.out"))
    assert (shards / "shards.json").is_file(), said
    verified = slurm.run(sys.executable, "-m", "data_pipeline", "verify", f"output={shards}", timeout=120)
    assert verified.returncode == 0, verified.stdout + verified.stderr
