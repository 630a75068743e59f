"""`make chaos`: kill ranks of one run at random moments, break it in every other way, and compare with runs left alone.

    python -m tests.faults.chaos --kills 50

Prints a table and exits with 1 if anything was lost.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llama_train.checkpoint.restore import open_checkpoint
from llama_train.observe.ledger import ledger
from llama_train.observe.metrics import Beginning, StepRecord, history, read
from llama_train.prove.harness import make_shards, whole

VOCABULARY = 101
EVERY = 5  # steps between checkpoints
DEADLINE = 8.0  # seconds, engine.timeout_seconds


@dataclass
class Row:
    """What became of one kind of fault."""

    injected: int = 0
    detected: int = 0
    recovered: int = 0
    lost_steps: list[int] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def overrides(directory: Path, name: str, steps: int, *more: str) -> list[str]:
    return [
        "model=tiny",
        f"model.vocab_size={VOCABULARY}",
        "model.context=32",
        f"data.shards={directory / 'shards'}",
        "data.sequence_length=32",
        "data.batch_size=6",
        "optimizer.learning_rate=1e-2",
        f"steps={steps}",
        f"checkpoint.every={EVERY}",
        f"engine.timeout_seconds={DEADLINE}",
        "logging.console=none",
        "logging.report=false",
        f"output={directory}",
        f"name={name}",
        *more,
    ]


@contextlib.contextmanager
def started(arguments: list[str], processes: int, restarts: int, log: Path) -> Iterator[subprocess.Popen]:
    """Start a run under torchrun that restarts it in place; whatever is left of it is killed at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", "-m", "llama_train", *arguments]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for each in [process.pid, *ranks(process).values()]:  # ranks have sessions of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait(10)


def finish(arguments: list[str], processes: int, restarts: int, log: Path, timeout: float = 240) -> int:
    """Run to the end; return torchrun's exit status."""
    with started(arguments, processes, restarts, log) as process:
        return process.wait(timeout)


def ranks(process: subprocess.Popen) -> dict[int, int]:
    """The processes of the ranks: rank → process id."""
    found = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                for variable in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    if variable.startswith(b"RANK="):
                        found[int(variable[5:])] = int(child)
    return found


def records(run: Path) -> list:
    return list(read(run / "metrics.jsonl")) if (run / "metrics.jsonl").exists() else []


def last_step(run: Path) -> int:
    return next((record.step for record in reversed(records(run)) if isinstance(record, StepRecord)), 0)


def kill_at_random(
    process: subprocess.Popen, run: Path, dice: random.Random, before: set[int], timeout: float = 120
) -> tuple[float, set[int]] | None:
    """Wait for processes other than `before`, then for a random moment of their lives; kill one of them.

    One time in four that is while they start, else within the steps of two checkpoint intervals.

    Returns:
        When, and the processes that were alive; None if the run ended first.
    """
    deadline = time.monotonic() + timeout
    while len(alive := ranks(process)) < 2 or set(alive.values()) & before:
        if process.poll() is not None:
            return None
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run}: no new processes within {timeout} s")
        time.sleep(0.05)
    if dice.random() < 0.25:
        time.sleep(dice.uniform(0, 5))
    else:
        goal, attempts = None, {record.attempt for record in records(run)}
        while goal is None or last_step(run) < goal:
            if process.poll() is not None or time.monotonic() > deadline:
                break
            found = records(run)
            if goal is None and found and (found[-1].attempt not in attempts or not attempts):
                goal = next(r.step for r in found if r.attempt == found[-1].attempt) + dice.randint(1, 2 * EVERY)
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.05))
    if process.poll() is not None:
        return None
    killed = time.time()
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(list(alive.values())), signal.SIGKILL)
    return killed, set(alive.values())


def recoveries(run: Path, moments: list[float], row: Row) -> None:
    """Take down, for every moment at which something was killed, the steps lost and the time to the next step."""
    found = records(run)
    steps = [record for record in found if isinstance(record, StepRecord)]
    for moment in moments:
        after = next((record for record in steps if record.ended_at > moment and record.seconds is not None), None)
        before = [record for record in steps if record.ended_at <= moment]
        if after is None:
            continue
        row.recovered += 1
        row.recovery_seconds.append(after.ended_at - moment)
        row.lost_steps.append(max(before[-1].step - after.step + 1, 0) if before else 0)


def compare(run: Path, alone: Path, row: Row) -> None:
    """Same bits of weights and moments, same losses, every step once."""
    ours, theirs = open_checkpoint(run), open_checkpoint(alone)
    for name in theirs.tensors:
        if not torch.equal(whole(ours, name), whole(theirs, name)):
            row.problems.append(f"{name} differs from the run left alone")
            break
    table, expected = history(run / "metrics.jsonl"), history(alone / "metrics.jsonl")
    if [each["step"] for each in table] != list(range(1, len(expected) + 1)):
        row.problems.append("the final history does not hold every step exactly once")
    for key in ("loss", "grad_norm", "tokens", "lr"):
        if [each[key] for each in table] != [each[key] for each in expected]:
            row.problems.append(f"the history of {key} differs from the run left alone")


def kills(directory: Path, count: int, seed: int) -> tuple[Row, str]:
    """kill -9 of a random rank at a random moment, `count` times in one run that is restarted in place."""
    row, dice, steps = Row(), random.Random(seed), 11 * count + 10
    run, log = directory / "killed", directory / "killed.log"
    assert finish(overrides(directory, "alone", steps), 2, 0, directory / "alone.log") == 0
    moments: list[float] = []
    with started(overrides(directory, "killed", steps), 2, count + 2, log) as process:
        alive: set[int] = set()
        for number in range(count):
            done = kill_at_random(process, run, dice, alive)
            if done is None:
                row.problems.append(f"the run ended after {number} kills; it needs more steps")
                break
            moments.append(done[0])
            alive = done[1]
            print(f"  kill {number + 1} of {count} after step {last_step(run)}", flush=True)
        status = process.wait(240)
    row.injected = len(moments)
    row.detected = min(len(moments), log.read_text(errors="replace").count("exitcode: -9"))
    recoveries(run, moments, row)
    if status != 0:
        row.problems.append(f"torchrun ended with status {status}")
    compare(run, directory / "alone", row)
    if row.lost_steps and max(row.lost_steps) > EVERY:
        row.problems.append(f"{max(row.lost_steps)} steps lost, more than checkpoint.every={EVERY}")
    restarts = [sum(r.seconds.values()) for r in records(run) if isinstance(r, Beginning)][1:]
    parts: dict[str, list[float]] = {}
    for record in records(run):
        if isinstance(record, Beginning):
            for part, seconds in record.seconds.items():
                parts.setdefault(part, []).append(seconds)
    split = ", ".join(f"{part} {statistics.median(values):.2f} s" for part, values in parts.items())
    median = statistics.median(restarts) if restarts else 0.0
    return row, f"restart, process to loop: median {median:.2f} s ({split})\n{ledger(run / 'metrics.jsonl').describe()}"


INJECTED = {
    "torn newest checkpoint, then a kill": ["+fault.torn_checkpoint=rank1@step10", "+fault.kill=rank1@step12"],
    "a rank's file deleted, then a kill": ["+fault.deleted_rank_file=rank0@step10", "+fault.kill=rank1@step13"],
    "hang": ["+fault.hang=rank1@step12"],
    "disk full": ["+fault.disk_full=rank1@step10"],
    "SIGTERM storm": ["+fault.sigterm_storm=rank1@step12:50"],
    "clock jump": ["+fault.clock_jump=rank0@step7:100000", "+fault.kill=rank0@step12"],
    "slow rank": ["+fault.slow=rank1@step12:0.3", "survive.slow_rank_every=5"],
    "NaN gradient": ["+fault.nan_gradient=rank1@step12", "survive.non_finite=skip"],
    "bit flip in a replica": ["+fault.bit_flip=rank1@step12", "survive.compare_replicas_every=5"],
}
SIGNS = {
    "torn newest checkpoint, then a kill": "checkpoint passed over",
    "a rank's file deleted, then a kill": "checkpoint passed over",
    "hang": "rank 1 (",
    "disk full": "No space left on device",
    "SIGTERM storm": "asked to stop by SIGTERM",
    "clock jump": "fault injected: clock_jump",
    "slow rank": "slow rank: rank 1",
    "NaN gradient": "update refused",
    "bit flip in a replica": "is not the same on all ranks that hold it",
}
"""What the log or the metrics say when the fault was seen."""


def injected(directory: Path, what: str, name: str, steps: int, alone: Path | None) -> Row:
    """One fault by `+fault.*`, in a run of its own that is restarted in place, and again by hand if it was asked to
    stop."""
    row, log, run = Row(injected=1), directory / f"{name}.log", directory / name
    replicas = ["layout.data_replicate=2", "layout.data_shard=1"] if "replica" in what else []
    arguments = overrides(directory, name, steps, *INJECTED[what], *replicas)
    begun = time.monotonic()
    status = finish(arguments, 2, 3, log)
    if status != 0 or last_step(run) < steps:
        status = finish(arguments, 2, 3, log)
    told = log.read_text(errors="replace") + (run / "metrics.jsonl").read_text()
    row.detected = int(SIGNS[what] in told)
    row.recovered = int(status == 0 and last_step(run) == steps)
    steps_done = [record for record in records(run) if isinstance(record, StepRecord)]
    for one, two in itertools.pairwise(steps_done):
        if one.attempt != two.attempt:
            row.lost_steps.append(one.step - two.step + 1)
            row.recovery_seconds.append(max(two.ended_at - one.ended_at, 0.0))
    if what == "clock jump":
        row.recovery_seconds.clear()  # the difference of two clocks
    if not row.detected:
        row.problems.append(f"nothing says {SIGNS[what]!r}; see {log}")
    if alone is not None:
        compare(run, alone, row)
    print(f"  {what}: {time.monotonic() - begun:.0f} s", flush=True)
    return row


def world_sizes(directory: Path, sizes: list[int], seed: int) -> Row:
    """Kill the run and go on with another number of processes, in float64."""
    row, dice, steps = Row(), random.Random(seed), 12 * len(sizes)
    run = directory / "sizes"
    precise = "engine.precision=fp64"
    assert finish(overrides(directory, "alone64", steps, precise), 1, 0, directory / "alone64.log") == 0
    moments = []
    for number, size in enumerate(sizes):
        arguments = overrides(directory, "sizes", steps, precise)
        with started(arguments, size, 0, directory / "sizes.log") as process:
            if number == len(sizes) - 1:
                if process.wait(240) != 0:
                    row.problems.append("the last part of the run failed")
                continue
            goal = last_step(run) + dice.randint(2, 2 * EVERY)
            while last_step(run) < goal and process.poll() is None:
                time.sleep(0.02)
            moments.append(time.time())
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(dice.choice(list(ranks(process).values())), signal.SIGKILL)
    row.injected = row.detected = len(moments)
    recoveries(run, moments, row)
    ours, theirs = history(run / "metrics.jsonl"), history(directory / "alone64" / "metrics.jsonl")
    if [each["step"] for each in ours] != [each["step"] for each in theirs]:
        row.problems.append("the final history does not hold every step exactly once")
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
    if not worst <= 1e-12:
        row.problems.append(f"losses differ by {worst:.1e} from one process left alone, more than 1e-12")
    print(f"  processes {sizes}: losses within {worst:.1e} of one process left alone", flush=True)
    return row


def table(rows: dict[str, Row]) -> str:
    lines = [
        "| fault | injected | detected | recovered | lost steps, most | recovery, median s | longest s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        lost = str(max(row.lost_steps, default=0))
        times = row.recovery_seconds
        middle, longest = (f"{statistics.median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
        lines.append(f"| {name} | {row.injected} | {row.detected} | {row.recovered} | {lost} | {middle} | {longest} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of random ranks, in one run")
    parser.add_argument("--reduced", action="store_true", help="only the kills and a torn checkpoint, for CI")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a directory for the runs and their logs, which stay there")
    asked = parser.parse_args()
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "shards").exists():
            make_shards(directory / "shards", VOCABULARY, 20_000)
        rows: dict[str, Row] = {}
        rows["kill -9 of a random rank"], split = kills(directory, asked.kills, asked.seed)
        alone = directory / "short"
        assert finish(overrides(directory, "short", 20), 2, 0, directory / "short.log") == 0
        few = ["torn newest checkpoint, then a kill"]
        for number, what in enumerate(few if asked.reduced else INJECTED):
            same = what not in ("NaN gradient", "bit flip in a replica")
            rows[what] = injected(directory, what, f"fault-{number}", 20, alone if same else None)
        if not asked.reduced:
            rows["kill, then another number of processes"] = world_sizes(directory, [2, 1, 3, 2, 1], asked.seed)
    print(f"\n{table(rows)}\n\n{split}\n{time.monotonic() - begun:.0f} s in all")
    problems = [f"{name}: {problem}" for name, row in rows.items() for problem in row.problems]
    problems += [
        f"{name}: {row.recovered} of {row.injected} recovered"
        for name, row in rows.items()
        if row.recovered < row.injected
    ]
    print("\n".join(f"FAILED {problem}" for problem in problems) or "nothing was lost")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
