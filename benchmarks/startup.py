"""How long it takes to import, to answer --help, and from start to the first step, split by phase.

    python -m benchmarks.startup

Every figure is the median over fresh processes, in seconds of CPU and of wall time, so that a busy machine shows.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = ("llama_train", "llama_train.prove", "llama_train.inspect", "llama_train.export", "llama_train.generate")
ENTRIES = {"llama_train": "llama_train.__main__", "llama_train.prove": "llama_train.prove.__main__"}


def timed(command: list[str]) -> tuple[float, float]:
    """Run a process; return its (CPU, wall) seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - started


def medians(command: list[str], rounds: int) -> tuple[float, float]:
    figures = [timed(command) for _ in range(rounds)]
    return statistics.median(cpu for cpu, _ in figures), statistics.median(wall for _, wall in figures)


def first_step() -> list[tuple[str, float, float]]:
    """Train two steps of a tiny model in this process; return (phase, CPU, wall) seconds."""
    phases = []
    cpu, wall = time.process_time(), time.perf_counter()

    def done(phase: str) -> None:
        nonlocal cpu, wall
        now = time.process_time(), time.perf_counter()
        phases.append((phase, now[0] - cpu, now[1] - wall))
        cpu, wall = time.process_time(), time.perf_counter()

    from llama_foundation import compose
    from llama_train.config import TrainConfig

    done("import configuration")
    with tempfile.TemporaryDirectory(prefix="benchmark-startup-") as directory:
        config = compose.compose(
            "train",
            TrainConfig,
            [
                "model=tiny",
                f"data.shards={directory}/shards",
                "data.sequence_length=64",
                "data.batch_size=4",
                "layout.micro_batch_size=4",
                "optimizer.learning_rate=1e-3",
                "steps=10",
                "logging.report=false",
                f"output={directory}",
            ],
        )
        done("compose configuration")
        import torch.distributed as dist

        done("import torch")
        from llama_train import train as _train  # noqa: F401  (what the command imports)
        from llama_train.data.order import TokenOrder
        from llama_train.distributed import distributed
        from llama_train.engine.build import build_engine
        from llama_train.parallel.resolve import resolve_layout
        from llama_train.run import Run

        done("import trainer")
        from llama_train.prove.harness import make_shards

        make_shards(Path(config.data.shards), config.model.vocab_size, 40_000)
        done("(make shards: no part of a start)")
        with distributed("cpu", dist.HashStore(), 60) as world:
            done("process groups")
            layout = resolve_layout(config, 1)
            run = Run(config, world)
            order = TokenOrder(config.data, config.steps, config.seed, run.amendments, run.shards)
            run.check(order)
            done("open run and shards")
            engine = build_engine(config, layout, world.device)
            done("build model and optimizer")
            for number, name in enumerate(("first", "second")):
                engine.step(order.local_micro_batches(number, 0, 1, 4), 1e-3)
                done(f"{name} step")
    return phases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--phases", action="store_true", help="in this process, as JSON: what the others are asked for")
    options = parser.parse_args()
    if options.phases:
        print(json.dumps(first_step()))
        return 0
    nothing = medians([sys.executable, "-c", "pass"], options.rounds)
    print(f"{'':44} {'CPU s':>7} {'wall s':>7}")
    print(f"{'python itself':44} {nothing[0]:7.2f} {nothing[1]:7.2f}")
    for command in COMMANDS:
        entry = ENTRIES.get(command, command)
        imported = f"import {entry}"
        cpu, wall = medians([sys.executable, "-c", imported], options.rounds)
        print(f"{'import ' + entry + ', above python':44} {cpu - nothing[0]:7.2f} {wall - nothing[1]:7.2f}")
    for command in COMMANDS:
        cpu, wall = medians([sys.executable, "-m", command, "--help"], options.rounds)
        print(f"{'python -m ' + command + ' --help':44} {cpu:7.2f} {wall:7.2f}")
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.startup", "--phases"], check=True, capture_output=True
            ).stdout
        )
        for _ in range(options.rounds)
    ]
    for rows in zip(*runs, strict=True):
        cpu, wall = (statistics.median(row[column] for row in rows) for column in (1, 2))
        print(f"{'start: ' + rows[0][0]:44} {cpu:7.2f} {wall:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
