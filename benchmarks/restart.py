"""From a rank that is killed to the next step: how long, and what it is spent on.

    python -m benchmarks.restart [--against OTHER_CHECKOUT]

Two ranks of a tiny model under torchrun, which restarts them in place; rank 1 is killed in its steps by SIGKILL, again
and again. The parts are those of a stopwatch outside of the run: what the processes say of their own start stands
beside it. With --against both checkouts take turns, and the ratio is the other's time over ours.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llama_foundation.errors import DataError
from llama_train.observe.metrics import Beginning, StepRecord, read
from llama_train.prove.harness import make_shards

HERE = Path(__file__).resolve().parents[1]
VOCABULARY = 101
PARTS = ("the old processes end", "new processes", "start, to the loop", "first step", "all")


@dataclass
class Restart:
    """Seconds of one restart."""

    parts: dict[str, float]  # by a stopwatch, those of PARTS
    told: dict[str, float]  # what the new process says its start took


def ranks(agent: int) -> dict[int, int]:
    """Return rank → process id of the ranks that torchrun, process `agent`, has started."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(each[5:]): int(child) for each in variables if each.startswith(b"RANK=")}
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition, seconds: float = 120.0):
    """Poll `condition` until it is true; return (what it returned, when)."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.01)
    return value, time.time()


def records(run: Path, kind: type) -> list:
    with contextlib.suppress(DataError):  # there is none yet
        return [record for record in read(run / "metrics.jsonl") if isinstance(record, kind)]
    return []


def one_restart(agent: int, run: Path, dice: random.Random) -> Restart:
    """Kill rank 1 some steps after it began, and watch until there is a step again."""
    begun = len(records(run, Beginning))
    old, _ = until(lambda: ranks(agent))
    time.sleep(dice.uniform(0.2, 0.7))
    killed = time.time()
    os.kill(old[1], signal.SIGKILL)
    _, gone = until(lambda: not any(map(alive, old.values())))
    _, there = until(lambda: len(set(ranks(agent).values()) - set(old.values())) == 2)
    # When the loop and the step came is read from the records: their times are of the same machine's clock.
    until(lambda: len(records(run, Beginning)) > begun)
    loop = records(run, Beginning)[-1]
    until(lambda: any(step.attempt == loop.attempt for step in records(run, StepRecord)))
    step = next(step for step in records(run, StepRecord) if step.attempt == loop.attempt)
    at_loop = loop.started_at + sum(loop.seconds.values())
    moments = [killed, gone, there, at_loop, step.ended_at]
    seconds = [after - before for before, after in pairwise(moments)]
    return Restart(dict(zip(PARTS, [*seconds, step.ended_at - killed], strict=True)), loop.seconds)


def restarts(checkout: Path, directory: Path, count: int, seed: int) -> list[Restart]:
    """Restart one run of the code in `checkout` `count` times."""
    dice = random.Random(seed)
    arguments = [
        "model=tiny",
        f"model.vocab_size={VOCABULARY}",
        "model.context=32",
        f"data.shards={directory / 'shards'}",
        "data.sequence_length=32",
        "data.batch_size=6",
        "optimizer.learning_rate=1e-2",
        "steps=1000000",
        "checkpoint.every=5",
        "logging.console=none",
        "logging.report=false",
        f"output={directory}",
        f"name={checkout.name}-{seed}",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={count}", "-m", "llama_train", *arguments]
    run = directory / f"{checkout.name}-{seed}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    with open(directory / "log", "ab") as log:
        agent = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: records(run, StepRecord))
            return [one_restart(agent.pid, run, dice) for _ in range(count)]
        finally:
            for process in [*ranks(agent.pid).values(), agent.pid]:  # ranks have sessions of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            agent.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--restarts", type=int, default=2, help="of each run")
    options = parser.parse_args()
    checkouts = [HERE] + ([options.against.resolve()] if options.against else [])
    found: dict[Path, list[Restart]] = {checkout: [] for checkout in checkouts}
    with tempfile.TemporaryDirectory(prefix="benchmark-restart-") as temporary:
        make_shards(Path(temporary) / "shards", VOCABULARY, 20_000)
        for number in range(options.rounds):
            for checkout in checkouts:
                found[checkout] += restarts(checkout, Path(temporary), options.restarts, number)
    heads = ["ours"] + (["the other", "ratio"] if options.against else [])
    print(f"{'seconds, median of ' + str(options.rounds * options.restarts):44}" + "".join(f"{h:>12}" for h in heads))
    for part in PARTS:
        medians = [statistics.median(each.parts[part] for each in found[checkout]) for checkout in checkouts]
        ratio = f"{medians[1] / medians[0]:12.2f}" if len(medians) > 1 else ""
        print(f"{part:44}" + "".join(f"{median:12.2f}" for median in medians) + ratio)
    for part in found[HERE][0].told:
        told = [[each.told.get(part, 0.0) for each in found[checkout]] for checkout in checkouts]
        print(f"{'  told by the process: ' + part:44}" + "".join(f"{statistics.median(each):12.2f}" for each in told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
