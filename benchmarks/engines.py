"""Both engines on the same run: tokens per second and peak memory, as ratios, and their curves over each other.

    python -m benchmarks.engines
    python -m benchmarks.engines --processes 8 --rounds 3 experiment=llama3_8b engine.precision=bf16 data.shards=DIR
    python -m benchmarks.engines --plot docs/engines.svg --runs native=runs/native ZeRO-3=runs/zero3

Runs of `llama-train` take turns (A B C A B C), each started anew by torchrun on this machine; a figure is the median of
the rounds' medians over the steps after the first. Memory is the highest of rank 0: on CUDA what was allocated there,
elsewhere all that was resident, libraries included. What follows the options is passed to every run. With --runs
nothing is run: the losses of runs that are there are drawn over each other, the first one's for comparison.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from llama_train.observe.metrics import history
from llama_train.prove.harness import make_shards

NATIVE = "native"
CONTESTANTS = {
    NATIVE: ["engine=native"],
    "ZeRO-1": ["engine=deepspeed", "engine.zero_stage=1"],
    "ZeRO-2": ["engine=deepspeed", "engine.zero_stage=2"],
    "ZeRO-3": ["engine=deepspeed", "engine.zero_stage=3"],
}
_TINY = ["model=tiny", "data.sequence_length=64", "data.batch_size=8", "layout.micro_batch_size=2"]
_TINY += ["optimizer.learning_rate=3e-3", "schedule.warmup_steps=4"]


@dataclass
class Seen:
    """What the runs of one contestant showed; a number per round."""

    speed: list[float] = field(default_factory=list)  # tokens per second, over all processes
    memory: list[int] = field(default_factory=list)  # bytes
    losses: list[float] = field(default_factory=list)  # of the last round, per step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="ranks of every run")
    parser.add_argument("--rounds", type=int, default=2, help="how often each engine is run")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a run")
    parser.add_argument("--plot", type=Path, help="an SVG of the curves")
    parser.add_argument("--runs", nargs="+", metavar="NAME=DIR", help="draw these runs' curves, and run nothing")
    parser.add_argument("overrides", nargs="*", help="of llama-train; without any, a tiny model on random documents")
    arguments = parser.parse_args()
    if arguments.runs:
        if arguments.plot is None:
            parser.error("--runs needs --plot FILE")
        runs = dict(each.split("=", 1) for each in arguments.runs)
        losses = {name: [r["loss"] for r in history(Path(run) / "metrics.jsonl")] for name, run in runs.items()}
        for name, apart in differences(losses).items():
            print(f"{name}: {len(losses[name])} steps, at most {max(apart):.1e} apart in loss, {apart[-1]:.1e} at last")
        plot(losses, arguments.plot)
        return
    seen = {name: Seen() for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="engines-") as temporary:
        overrides = arguments.overrides
        if not overrides:
            make_shards(Path(temporary) / "shards", 512, 2 * arguments.steps * 8 * 64)
            overrides = [*_TINY, f"data.shards={temporary}/shards"]
        for number in range(arguments.rounds):
            for name, engine in CONTESTANTS.items():
                run = Path(temporary) / f"{name}-{number}"
                records = train([*overrides, *engine, f"steps={arguments.steps}"], run, arguments.processes)
                later = records[1:] or records
                seen[name].speed.append(statistics.median(record["tokens_per_second"] for record in later))
                seen[name].memory.append(max(record["memory_bytes"] for record in records))
                seen[name].losses = [record["loss"] for record in records]
    show(seen)
    if arguments.plot is not None:
        plot({name: one.losses for name, one in seen.items()}, arguments.plot)


def train(overrides: list[str], run: Path, processes: int) -> list[dict[str, Any]]:
    """Train and return the records of the steps."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "llama_train", *overrides, f"output={run.parent}", f"name={run.name}"]
    command += ["logging.console=none", "logging.report=false", "checkpoint.every=0"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return history(run / "metrics.jsonl")


def show(seen: dict[str, Seen]) -> None:
    """Print every engine's figures and their ratio to the native engine's."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{today}, {device}, torch {torch.__version__}, deepspeed {metadata.version('deepspeed')}")
    print(
        f"{'engine':8} {'tokens/s':>9} {'ratio':>6} {'of rounds':>14} {'MiB':>6} {'ratio':>6} {'loss difference':>16}"
    )
    native = seen[NATIVE]
    for name, one in seen.items():
        speed, memory = statistics.median(one.speed), statistics.median(one.memory)
        ratios = [a / b for a, b in zip(one.speed, native.speed, strict=True)]
        faster, rounds = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        larger = statistics.median(a / b for a, b in zip(one.memory, native.memory, strict=True))
        apart = max(abs(a - b) for a, b in zip(one.losses, native.losses, strict=True))
        print(f"{name:8} {speed:9.0f} {faster:6.2f} {rounds:>14} {memory / 2**20:6.0f} {larger:6.2f} {apart:16.1e}")


def differences(losses: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return how far the losses of all but the first are from the first one's, for as many steps as both have."""
    (_, first), *others = losses.items()
    return {name: [abs(a - b) for a, b in zip(values, first, strict=False)] for name, values in others}


def plot(losses: dict[str, list[float]], path: Path) -> None:
    """Draw the losses over each other, and below how far each is from the first one's."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "engines"}):
        figure = Figure(figsize=(7, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for number, (name, values) in enumerate(losses.items()):
            width = 1 + 1.5 * (len(losses) - 1 - number)
            above.plot(range(1, len(values) + 1), values, label=name, linewidth=width, color=f"C{number}")
        for number, (name, apart) in enumerate(differences(losses).items(), start=1):
            below.plot(range(1, len(apart) + 1), apart, label=name, linewidth=1, color=f"C{number}")
        above.set_ylabel("loss")
        above.legend()
        below.set_ylabel(f"difference to {next(iter(losses))}")
        below.set_yscale("log")
        below.set_xlabel("optimizer step")
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
