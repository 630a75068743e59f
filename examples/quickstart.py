"""From raw text to a trained Llama with the public commands, each shown as it runs. `make quickstart` calls this.

Works in runs/quickstart/ and starts afresh every time: what was there is removed.
"""

import argparse
import fcntl
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CORPUS = "examples/corpus/*.jsonl.zst"
PROMPT = "The"
STEPS = 280  # as in configs/experiment/quickstart.yaml
INSPECTED_STEP = 10


@dataclass
class Step:
    """One command of the quickstart."""

    name: str  # of its log file
    title: str
    command: list[str]


class StepError(Exception):
    """A command ended with an error, or did not leave what it should."""


def steps(run: Path, processes: int, corpus: str = CORPUS, extra: tuple[str, ...] = ()) -> list[Step]:
    """Return the commands in their order.

    Args:
        run: the run directory.
        processes: of the training.
        corpus: a glob of JSONL files.
        extra: overrides for both halves of the training.
    """
    python = [sys.executable, "-m"]
    train = [
        str(Path(sys.executable).with_name("torchrun")),
        *("--standalone", f"--nproc-per-node={processes}", "-m", "llama_train"),
        *("experiment=quickstart", f"data.shards={run}/shards", f"output={run.parent}", f"name={run.name}"),
        *extra,
    ]
    return [
        Step(
            "1-shards",
            "Clean, deduplicate and tokenise the text",
            [
                *(
                    *python,
                    "data_pipeline",
                    "pipeline=quickstart",
                    "tokenizer=sentencepiece_4k",
                    "validation.fraction=0.02",
                ),
                *(f"input.paths=[{corpus}]", f"output={run}/shards", "workers=2"),
            ],
        ),
        Step("2-train", "Train the first half, then stop", [*train, f"stop_at_step={STEPS // 2}"]),
        Step("3-resume", "The same command again: it goes on from the checkpoint", train),
        Step(
            "4-export",
            "Export to Hugging Face format",
            [
                *(*python, "llama_train.export", f"input={run}/checkpoints"),
                *("to=huggingface", f"output={run}/huggingface"),
            ],
        ),
        Step(
            "5-generate",
            "Write a sample with the exported model",
            [
                *(*python, "llama_train.generate", f"checkpoint={run}/huggingface", f"prompt={PROMPT}"),
                *("temperature=0.8", "top_p=0.9", "max_new_tokens=48", "seed=0"),
            ],
        ),
        Step(
            "6-inspect",
            f"Which documents did step {INSPECTED_STEP} see?",
            [*python, "llama_train.inspect", f"run={run}", f"step={INSPECTED_STEP}", "limit=5"],
        ),
    ]


def execute(step: Step, log: Path, environment: dict[str, str]) -> None:
    """Run the step's command, its output both shown and written to `log`.

    Raises:
        StepError: naming the step, its command, its exit status and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        status = _run_in_terminal(step, file, environment) if sys.stdout.isatty() else _run(step, file, environment)
    if status:
        raise StepError(
            f"{step.title!r} failed with exit status {status}\n  command: {shown(step.command)}\n  log:     {log}"
        )


def _run(step: Step, log, environment: dict[str, str]) -> int:
    process = subprocess.Popen(
        step.command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    for line in process.stdout:
        log.write(line)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return process.wait()


def _run_in_terminal(step: Step, log, environment: dict[str, str]) -> int:
    """Give the command a terminal of its own, so that it draws its progress bars."""

    def tee(descriptor: int) -> bytes:
        data = os.read(descriptor, 4096)
        log.write(data)
        return data

    size = shutil.get_terminal_size()
    command = ["env", f"COLUMNS={size.columns}", f"LINES={size.lines}", *step.command]
    before = dict(os.environ)
    os.environ.update(environment)  # pty.spawn has no environment of its own
    try:
        status = os.waitstatus_to_exitcode(pty.spawn(command, tee))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return status


def shown(command: list[str]) -> str:
    """Return `command` as one types it, without the folder of the virtual environment."""
    program = Path(command[0]).name
    return shlex.join(["python" if program.startswith("python") else program, *command[1:]])


def summarise(run: Path, seconds: float, processes: int) -> dict:
    """Check that everything is there and learned something; add paths and total time to summary.json.

    Raises:
        StepError: a promised file is missing, or the loss did not fall.
    """
    path = run / "summary.json"
    if not path.is_file():
        raise StepError(f"the training left no {path}")
    summary = json.loads(path.read_text(encoding="utf-8"))
    checkpoints = sorted(run.glob("checkpoints/step-*"))
    places = {
        "shards": run / "shards",
        "checkpoint": checkpoints[-1] if checkpoints else run / "checkpoints",
        "huggingface": run / "huggingface",
        "metrics": run / "metrics.jsonl",
        "report": run / "report.html",
        "data_report": run / "shards" / "report.html",
    }
    promised = [*places.values(), run / "shards" / "shards.json", run / "huggingface" / "config.json"]
    missing = [str(place) for place in promised if not place.exists()]
    if missing:
        raise StepError(f"all commands succeeded, but these are missing: {', '.join(missing)}")
    if not summary["loss_last"] < summary["loss_first"]:
        raise StepError(f"the loss did not fall: {summary['loss_first']} at first, {summary['loss_last']} at last")
    summary |= {name: str(place) for name, place in places.items()}
    summary |= {"quickstart_seconds": round(seconds, 1), "processes": processes}
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def table(summary: dict) -> Table:
    """Return the summary as a table for people."""
    minutes, seconds = divmod(round(summary["quickstart_seconds"]), 60)
    rows = Table(title="Quickstart", title_justify="left", show_header=False)
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    rows.add_row("loss", f"{summary['loss_first']:.3f} at the first step, {summary['loss_last']:.3f} at the last")
    rows.add_row("validation loss", f"{summary['validation_loss']:.3f} on held-out documents")
    rows.add_row("speed", f"{summary['tokens_per_second']:,.0f} tokens/s in {summary['processes']} processes")
    rows.add_row("time", f"{minutes} min {seconds} s in all, {summary['seconds']:.0f} s of it training")
    for name, key in (
        ("token shards", "shards"),
        ("what was dropped", "data_report"),
        ("checkpoint", "checkpoint"),
        ("Hugging Face model", "huggingface"),
        ("training report", "report"),
    ):
        rows.add_row(name, summary[key])
    return rows


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Refuse to remove the directory that another quickstart works in."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(f"another quickstart is running here (it holds {lock})") from None
        yield


def training_processes() -> int:
    """Every GPU there is, or two processes on the CPU."""
    import torch  # takes seconds, and --help needs none of it

    return torch.cuda.device_count() or 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, help="of the training; default: every GPU, or 2 on the CPU")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    run, console = Path("runs/quickstart"), Console(highlight=False, soft_wrap=True)
    start = time.monotonic()
    try:
        if not list(ROOT.glob(CORPUS)):
            raise StepError(f"no files match {CORPUS}; is this a complete checkout?")
        with alone(run.with_name("quickstart.lock")):
            shutil.rmtree(run, ignore_errors=True)
            processes = arguments.processes or training_processes()
            threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
            # torchrun warns where the number of threads is not set; C++ libraries chat about sockets
            environment = os.environ | {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
            for number, step in enumerate(plan := steps(run, processes), start=1):
                console.print(f"\n[bold]{number}/{len(plan)} {step.title}[/bold]")
                console.print(f"$ {shown(step.command)}", style="cyan", markup=False)
                execute(step, run / "logs" / f"{step.name}.log", environment)
            summary = summarise(run, time.monotonic() - start, processes)
    except StepError as error:
        console.print(f"\nquickstart: {error}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print(f"\nquickstart: stopped; what is there stays in {run}/ until the next start")
        return 130
    console.print()
    console.print(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
