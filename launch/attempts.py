"""`python -m launch.attempts begin|end RUN`: the attempts of a job, and whether there shall be another one.

The batch script calls it before and after the ranks run. RUN/launch/attempts.json lists the attempts: the step that
each began after, and how it ended. A job that SLURM requeues by itself (a dead node) has no chance to write its end,
so progress is counted from where the attempts began.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError, NumbersError, RunError, exit_status
from llama_foundation.files import publish_json

ATTEMPTS = "launch/attempts.json"
STOP = "launch/stop"
"""Made by `llama-launch stop`: the run does not go on by itself."""


KILLED_BY_WARNING = 128 + signal.SIGUSR1
"""The status of ranks that were still starting when they were asked to stop."""


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """Return the attempts of all jobs of a run, oldest first."""
    path = run / ATTEMPTS
    if not path.is_file():
        return []
    try:
        attempts = json.loads(path.read_text())
        json.dumps(attempts, ensure_ascii=False).encode()  # half of a surrogate pair could not be written again
        kinds = {"job": str, "nodes": str, "began_after": int}
        for attempt in attempts if isinstance(attempts, list) else [attempts]:
            if "status" not in attempt or any(type(attempt[name]) is not kind for name, kind in kinds.items()):
                raise ValueError(f"{str(attempt)[:80]} is no attempt")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it to forget how often this run was tried") from error
    return attempts


def newest_step(run: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 without one. Imports no torch: it runs on every start."""
    names = (re.fullmatch(r"step-(\d{8,18})", path.parent.name) for path in run.glob("checkpoints/step-*/index.json"))
    return max((int(match[1]) for match in names if match), default=0)


def without_progress(attempts: Sequence[dict[str, Any]], job: str, step: int) -> int:
    """Return how many attempts of `job` in a row, up to the last one, have brought no checkpoint beyond `step`."""
    count = 0
    for attempt in reversed(attempts):
        if attempt["job"] != job or attempt["began_after"] < step:
            break
        count += 1
    return count


def begin(run: Path, job: str, nodes: str, limit: int) -> None:
    """Write down that an attempt begins.

    Raises:
        RunError: `limit` attempts of this job have ended where they began; this one would, too.
    """
    attempts, step = read_attempts(run), newest_step(run)
    tried = without_progress(attempts, job, step)
    if tried >= limit:
        raise RunError(
            f"{run}: {tried} attempts of job {job} have brought no checkpoint beyond step {step} "
            f"(cluster.slurm.attempts_without_progress={limit}); see the log above, then submit the run again"
        )
    attempts.append({"job": job, "nodes": nodes, "began_after": step, "status": None})
    publish_json(run / ATTEMPTS, attempts)


def verdict(run: Path, job: str, status: int, limit: int) -> tuple[bool, str]:
    """Return whether the run shall be queued again, and why, for people to read.

    Args:
        status: of the ranks. 0: the run is finished or was asked to stop; 2: a setting or a file is wrong, and would be
            the next time; 4: bad numbers, and so would they; anything else may be the machine's fault.
    """
    step = newest_step(run)
    if status == 0 and finished(run):
        return False, f"finished after step {step}"
    if (run / STOP).exists():
        return False, f"stopped by llama-launch stop after step {step}; submit it again to go on"
    if status == NumbersError.exit_code:
        return False, "not queued again: the numbers of the run are bad (status 4), and would be the next time"
    if status == ConfigError.exit_code:
        return False, "not queued again: a setting or a file is wrong (status 2), and would be the next time"
    tried = without_progress(read_attempts(run), job, step)
    if tried >= limit:
        return False, f"not queued again: {tried} attempts have brought no checkpoint beyond step {step}"
    why = "asked to stop" if status in (0, KILLED_BY_WARNING) else f"ended with status {status}"
    return True, f"{why}; goes on after step {step}"


def end(run: Path, job: str, status: int, limit: int, requeue: bool) -> None:
    """Write down how the attempt ended, and queue the job again where the run shall go on."""
    again, why = verdict(run, job, status, limit)
    if again and not requeue:
        again, why = False, f"{why} when it is submitted again (cluster.slurm.requeue=false)"
    if again and (state := job_state(job)) != "RUNNING":  # a cancelled job could be requeued, and would come back
        again, why = False, f"not queued again: SLURM says that job {job} is {state}"
    attempts = read_attempts(run)
    if attempts and attempts[-1]["job"] == job:
        attempts[-1] |= {"status": status, "ended_after": newest_step(run), "verdict": why}
        publish_json(run / ATTEMPTS, attempts)
    print(f"{run}: {why}", flush=True)
    if again:
        subprocess.run(["scontrol", "requeue", job], check=True)


def job_state(job: str) -> str:
    """Return the job's state as the controller knows it now."""
    answer = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    found = re.search(r"JobState=(\S+)", answer.stdout)
    return found[1] if found else "unknown to scontrol"


def finished(run: Path) -> bool:
    """Whether the last step of a run is done."""
    try:
        return bool(json.loads((run / "summary.json").read_text())["finished"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.attempts", description=__doc__.partition("\n")[0])
    parser.add_argument("when", choices=["begin", "end"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--no-requeue", action="store_true")
    options = parser.parse_args()
    job = os.environ["SLURM_JOB_ID"]
    if options.when == "begin":
        begin(options.run, job, os.environ.get("SLURM_JOB_NODELIST", ""), options.limit)
    else:
        end(options.run, job, options.status, options.limit, not options.no_requeue)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
