"""llama-evaluate: held-out loss and tasks of a checkpoint; `python -m llama_train.evaluate` does the same.

Under torchrun the model is sharded over the ranks, and the work is dealt out to them.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from data_pipeline.shards.reader import open_root
from llama_foundation.errors import ConfigError
from llama_foundation.files import publish_json
from llama_train.command import check_device, run_command
from llama_train.evaluate.held_out import held_out_loss
from llama_train.evaluate.score import Scorer
from llama_train.evaluate.task_files import UnknownKindError, find_tasks, read_task, run_task
from llama_train.inference import opened


@dataclass
class EvaluateConfig:
    """What llama-evaluate is asked for."""

    checkpoint: str = MISSING  # a checkpoint, a run directory (its newest checkpoint) or a Hugging Face directory
    shards: str | None = None  # an output directory of llama-data: loss and bits per byte of its held-out documents
    split: str = "validation"
    documents: int = 0  # of each source; 0: all
    tasks: list[str] = field(default_factory=list)  # of task_files; without it, of lm-evaluation-harness
    task_files: str | None = None  # a directory of JSONL tasks; without `tasks`, all of them
    delimiters: dict[str, str] = field(default_factory=dict)  # task → text between question and answer; " " elsewhere
    harness_tasks: str | None = None  # a directory of more lm-evaluation-harness tasks, in YAML
    shots: int | None = None  # examples shown before each of a harness task; null: what the task says
    limit: int = 0  # examples of each task; 0: all
    batch_size: int = 8  # sequences in one forward pass of one process
    tokenizer: str | None = None  # a file or directory; null: the one kept with the checkpoint
    device: str = "auto"  # auto, cpu or cuda
    output: str | None = None  # a JSON file to write the numbers to

    def check(self) -> None:
        for name, least in (("documents", 0), ("limit", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.shots is not None and self.shots < 0:
            raise ConfigError(f"shots={self.shots} must be at least 0")
        if self.task_files is not None and self.harness_tasks is not None:
            raise ConfigError("task_files and harness_tasks: give one of them")
        if self.task_files is not None and self.shots:
            raise ConfigError(f"shots={self.shots}: tasks in files have what they show in their examples; leave it out")
        if self.shards is None and not self.tasks and self.task_files is None:
            raise ConfigError("nothing to evaluate; give shards=DIR, tasks=[...] or task_files=DIR")
        check_device(self.device)


def run(config: EvaluateConfig, store: dist.Store) -> None:
    """Evaluate, print tables, and write `config.output`.

    Raises:
        CheckpointError, DataError: the checkpoint, the shards or a task's file is missing or damaged.
        ConfigError: there is no tokenizer, or no such task.
    """
    # What can be refused without the model is refused before it is loaded.
    shards = None if config.shards is None else open_root(config.shards)
    files = None if config.task_files is None else find_tasks(config.task_files, config.tasks)
    with opened(config.checkpoint, config.tokenizer, config.device, store) as model:
        scorer = Scorer(model.model, model.config.context, model.tokenizer, model.peers, config.batch_size)
        results: dict[str, Any] = {"checkpoint": config.checkpoint}
        if shards is not None:
            held_out = held_out_loss(scorer, shards, config.split, config.documents)
            results["held_out"] = {
                "shards": config.shards,
                "split": config.split,
                "all": held_out.total.numbers(),
                "sources": {name: sums.numbers() for name, sums in held_out.by_source.items()},
                "languages": {name: sums.numbers() for name, sums in held_out.by_language.items()},
            }
        if files is not None:
            results |= run_files(scorer, files, config.delimiters, config.limit, skip=not config.tasks)
        elif config.tasks:
            from llama_train.evaluate.harness import run_harness

            results["tasks"] = run_harness(scorer, config.tasks, config.harness_tasks, config.limit, config.shots)
        if model.peers.rank != 0:
            return
    show(results, Console())
    if config.output is not None:
        publish_json(Path(config.output), results)


def run_files(
    scorer: Scorer, files: dict[str, Path], delimiters: dict[str, str], limit: int, skip: bool
) -> dict[str, Any]:
    """Run the tasks of `files`; with `skip`, those of a kind that is not known are told instead of refused.

    Raises:
        ConfigError: a delimiter is of no task.
        DataError: a file cannot be read.
    """
    results: dict[str, Any] = {"tasks": {}, "skipped": {}}
    for name, path in files.items():
        try:
            task = read_task(name, path, delimiters.get(name, " "), limit)
        except UnknownKindError as error:
            if not skip:
                raise
            results["skipped"][name] = str(error)
            continue
        results["tasks"][name] = run_task(task, scorer)
    return results


def show(results: dict[str, Any], console: Console) -> None:
    """Print the numbers as tables."""
    if "held_out" in results:
        held_out = results["held_out"]
        table = Table("", "documents", "tokens", "bytes", "loss", "bits per byte", title=f"{held_out['split']} loss")
        for name, numbers in [
            *((f"source {name}", numbers) for name, numbers in held_out["sources"].items()),
            *((f"language {name}", numbers) for name, numbers in held_out["languages"].items()),
            ("all", held_out["all"]),
        ]:
            table.add_row(name, *(_text(value) for value in numbers.values()))
        console.print(table)
    if results.get("tasks"):
        table = Table("task", "metric", "value", "± standard error")
        for name, numbers in results["tasks"].items():
            for metric, value in numbers.items():
                if isinstance(value, float) and not metric.endswith(("_stderr", "_stderr,none")):
                    table.add_row(name, metric, _text(value), _text(numbers.get(f"{metric}_stderr")))
        console.print(table)
    for name, why in results.get("skipped", {}).items():
        console.print(f"not evaluated: {name}: {why}", markup=False, highlight=False)


def _text(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def main() -> int:
    """Run the command line."""
    return run_command("evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    sys.exit(main())
