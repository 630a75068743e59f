"""The jobs of a run: `llama-launch status`, `logs` and `stop`."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from launch.attempts import STOP, finished, newest_step, read_attempts
from llama_foundation.errors import ConfigError, RunError
from llama_foundation.files import publish_json

JOBS = "launch/jobs.json"
_SACCT = ("JobID", "State", "ExitCode", "Elapsed", "NNodes", "NodeList")
_SQUEUE = "%i|%T|-|%M|%D|%R"
_ACTIVE = ("PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING", "CONFIGURING", "REQUEUE_HOLD")


@dataclass
class RunsConfig:
    """Which run, and how much of it."""

    run: str = MISSING  # the run directory
    lines: int = 40  # logs: of the newest log
    now: bool = False  # stop: cancel at once, without waiting for a checkpoint

    def check(self) -> None:
        if self.lines < 1:
            raise ConfigError(f"lines={self.lines} must be at least 1")


@dataclass(frozen=True)
class Row:
    """One job as SLURM reports it, in SLURM's words."""

    job: str
    state: str
    exit_code: str
    elapsed: str
    nodes: str
    where: str

    @property
    def active(self) -> bool:
        """Whether it waits, runs, or is about to do so again."""
        return self.state.split()[0] in _ACTIVE


def record_job(run: Path, job: str) -> None:
    """Remember a job id of this run."""
    publish_json(run / JOBS, [*_jobs(run), job])


def status(config: RunsConfig) -> int:
    """Print the jobs of a run, its attempts, and how far it is."""
    run = _run(config)
    rows = job_rows(_jobs(run))
    lines = [("job", "state", "exit", "elapsed", "nodes", "where")]
    lines += [(row.job, row.state, row.exit_code, row.elapsed, row.nodes, row.where) for row in rows]
    if rows:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row.exit_code == "0:53":
            print(f"job {row.job}: its nodes could not open the log in {run}/logs; output must be visible to all nodes")
    for number, attempt in enumerate(read_attempts(run), 1):
        ended = attempt.get("ended_after", "?")
        how = "no end written" if attempt["status"] is None else f"status {attempt['status']}"
        steps = f"step {attempt['began_after']} to {ended}"
        print(f"attempt {number}: job {attempt['job']} on {attempt['nodes']}, {steps}, {how}")
    print(f"state: {standing(run, rows)}")
    print(f"newest checkpoint: step {newest_step(run)}")
    print(f"last step: {_last_step(run)}")
    return 0


def standing(run: Path, rows: list[Row]) -> str:
    """Return where a run stands, for people to read."""
    stopping = (run / STOP).exists()
    for row in rows:
        if row.active:
            return f"job {row.job} is {row.state}" + (", and was asked to stop" if stopping else "")
    if finished(run):
        return "finished"
    if stopping:
        return "stopped on request; submit it again to go on"
    attempts = read_attempts(run)
    return attempts[-1].get("verdict", "its last attempt was cut off") if attempts else "has not started"


def logs(config: RunsConfig) -> int:
    """Print the end of the newest job's log."""
    run = _run(config)
    paths = sorted(run.glob("logs/slurm-*.out"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise RunError(f"{run}/logs has no log of a job yet; llama-launch status run={run} says whether one waits")
    print(f"==> {paths[-1]}")
    with open(paths[-1], "rb") as file:
        file.seek(0, 2)
        size = min(file.tell(), 400 * config.lines)
        file.seek(-size, 2)
        tail = file.read().decode(errors="replace").splitlines()[-config.lines :]
    print("\n".join(tail))
    return 0


def stop(config: RunsConfig) -> int:
    """Ask the run's jobs to write a checkpoint and end, and not to come back."""
    run = _run(config)
    active = active_jobs(run)
    if not active:
        raise RunError(f"{run} has no job that waits or runs; nothing to stop")
    (run / STOP).write_text("")
    for row in active:
        gently = row.state.startswith("RUNNING") and not config.now
        command = ["scancel", *(["--signal=USR1"] if gently else []), row.job]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            raise RunError(f"{' '.join(command)}: {answer.stderr.strip()}")
        print(f"job {row.job}: " + ("asked to write a checkpoint and end" if gently else "cancelled"))
    return 0


def active_jobs(run: Path) -> list[Row]:
    """Return the jobs of a run that wait or run."""
    return [row for row in job_rows(_jobs(run)) if row.active]


def job_rows(jobs: list[str]) -> list[Row]:
    """Ask SLURM for these jobs: its queue for those that wait or run, its accounting, which
    lags by seconds and may not exist, for the others.

    Raises:
        RunError: there is no SLURM here.
    """
    if not jobs:
        return []
    queued: dict[str, Row] = {}
    for job in jobs:  # of a list squeue refuses all when one is gone
        queued |= {row.job: row for row in _ask(["squeue", "-h", "-t", "all", "-o", _SQUEUE, "-j", job])}
    kept = {row.job: row for row in _ask(["sacct", "-nXP", f"--format={','.join(_SACCT)}", "-j", ",".join(jobs)])}
    rows = kept | {job: row for job, row in queued.items() if job not in kept or row.active or kept[job].active}
    return [rows.get(job) or Row(job, "gone from SLURM's memory", "-", "-", "-", "-") for job in jobs]


def _ask(command: list[str]) -> list[Row]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise RunError(f"there is no SLURM on this machine (no {command[0]} in PATH)") from error
    if answer.returncode:  # without accounting, or a job that is gone
        return []
    cells = (line.split("|") for line in answer.stdout.splitlines())
    return [Row(*line) for line in cells if len(line) == len(_SACCT)]


def _jobs(run: Path) -> list[str]:
    path = run / JOBS
    if not path.is_file():
        return []
    try:
        jobs = json.loads(path.read_text())
        if not isinstance(jobs, list) or not all(isinstance(job, str) and job.isdecimal() for job in jobs):
            raise ValueError("not a list of job numbers")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it to forget the jobs of this run") from error
    return jobs


def _run(config: RunsConfig) -> Path:
    run = Path(config.run)
    if not run.is_dir():
        raise ConfigError(f"run={run} is no directory; give output/name of the run")
    return run


def _last_step(run: Path) -> str:
    path = run / "metrics.jsonl"
    if not path.is_file():
        return "none yet"
    with open(path, "rb") as file:
        file.seek(0, 2)
        size = min(file.tell(), 1 << 20)
        file.seek(-size, 2)
        for line in reversed(file.read().splitlines()):
            try:
                record = json.loads(line)
                return f"{record['step']}, loss {record['loss']:.4f}, {record['tokens_per_second']:,.0f} tokens/s"
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue  # another kind of record, or the first half of a line
    return "none yet"
