"""llama-evaluate: held-out loss and tasks of a checkpoint; `python -m llama_train.evaluate` does the same.

Under torchrun the model is sharded over the ranks, and the work is dealt out to them.
"""

import json
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
from llama_foundation.files import publish_json, publish_text
from llama_train.command import check_device, run_command
from llama_train.evaluate.held_out import held_out_loss
from llama_train.evaluate.score import Scorer
from llama_train.evaluate.task_files import Task, UnknownKindError, find_tasks, read_task
from llama_train.evaluate.task_scores import run_task
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
    shots: int | None = None  # examples shown before each; null: none in task_files, else what the harness task says
    shots_from: dict[str, str] = field(default_factory=dict)  # task of task_files → file of what is shown; else its own
    limit: int = 0  # examples of each task; 0: all
    max_new_tokens: int | None = None  # of each text generated for task_files; null: what the kind of task says
    execute_code: bool = False  # run the programs that the model writes, as this user, with no sandbox around them
    samples: str | None = None  # a directory to write the texts to that were generated for task_files, as JSONL
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
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        for name in ("shots_from", "max_new_tokens", "execute_code", "samples"):
            if self.task_files is None and getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)} is of tasks in files; add task_files=DIR")
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
    files, skipped = ([], {}) if config.task_files is None else read_files(config, config.task_files)
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
        samples: dict[str, list[dict[str, str]]] = {}
        if config.task_files is not None:
            results |= {"tasks": {}, "skipped": skipped}
            for task in files:
                done = run_task(task, scorer, config.execute_code)
                results["tasks"][task.name] = done.numbers
                if done.samples:
                    samples[task.name] = done.samples
        elif config.tasks:
            from llama_train.evaluate.harness import run_harness

            results["tasks"] = run_harness(scorer, config.tasks, config.harness_tasks, config.limit, config.shots)
        if model.peers.rank != 0:
            return
    show(results, Console())
    if config.samples is not None:
        for name, lines in samples.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            publish_text(Path(config.samples) / f"{name}.jsonl", text)
    if config.output is not None:
        publish_json(Path(config.output), results)


def read_files(config: EvaluateConfig, directory: str) -> tuple[list[Task], dict[str, str]]:
    """Read the tasks of `directory`; of those that cannot be run, return why.

    Raises:
        ConfigError: there is no such task, or `tasks` names one that needs a setting.
        DataError: a file cannot be read, or `tasks` names one of no kind that is known.
    """
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    files = find_tasks(directory, config.tasks)
    for name in config.shots_from:
        if name not in files:
            raise ConfigError(f"shots_from.{name}: is not a task of this run; its tasks: {', '.join(files)}")
    for name, path in files.items():
        shots_path = Path(config.shots_from[name]) if name in config.shots_from else None
        delimiter = config.delimiters.get(name, " ")
        try:
            task = read_task(name, path, delimiter, config.limit, config.shots or 0, shots_path, config.max_new_tokens)
            if task.kind == "code" and not config.execute_code and config.samples is None:
                raise ConfigError(
                    f"{name}: the model writes programs, which are only run with execute_code=true (as this user, with "
                    "no sandbox around them); samples=DIR writes them to a file instead"
                )
        except (UnknownKindError, ConfigError) as error:
            if config.tasks:
                raise
            skipped[name] = str(error)
            continue
        tasks.append(task)
    return tasks, skipped


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
        for name, numbers in results["tasks"].items():
            if numbers.get("kind") == "code" and "pass@1" not in numbers:
                console.print(f"{name}: the programs were not run (execute_code=true does)", highlight=False)
    for name, why in results.get("skipped", {}).items():
        console.print(f"not evaluated: {name}: {why}", markup=False, highlight=False)


def _text(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def main() -> int:
    """Run the command line."""
    return run_command("evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    sys.exit(main())
