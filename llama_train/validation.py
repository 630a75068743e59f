"""How good the model is while it trains: loss on held-out documents, and tasks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from data_pipeline.shards.reader import ShardRoot
from llama_foundation.errors import ConfigError, UserError
from llama_train.config import TrainConfig, ValidationConfig
from llama_train.data.batches import validation_micro_batches
from llama_train.engine.engine import Engine
from llama_train.evaluate.task_files import Task, find_tasks, read_task
from llama_train.parallel.layout import Layout
from llama_train.peers import Peers


@dataclass(frozen=True)
class ValidationLoss:
    """The mean loss per token, in nats, over all windows, and over those of each source."""

    loss: float
    by_source: dict[str, float]


def validate(engine: Engine, config: TrainConfig, shards: ShardRoot, layout: Layout) -> ValidationLoss:
    """Measure the loss over `validation.batches` batches of the validation shards: always the same windows.

    Raises:
        DataError: the validation shards hold fewer windows than asked for.
    """
    sums: dict[str, tuple[float, int]] = {}
    for source in shards.sources("validation"):
        loss, tokens = 0.0, 0
        for micro_batch in validation_micro_batches(
            shards,
            config.data,
            source,
            config.validation.batches,
            layout.data_rank,
            layout.data_world,
            layout.micro_batch_size,
        ):
            loss_sum, count = engine.evaluate([micro_batch])
            loss, tokens = loss + loss_sum, tokens + count
        if tokens:
            sums[source] = (loss, tokens)
    total, tokens = (sum(column) for column in zip(*sums.values(), strict=True)) if sums else (0.0, 0)
    by_source = {source: loss / count for source, (loss, count) in sums.items()}
    return ValidationLoss(total / max(tokens, 1), by_source)


def load_tasks(settings: ValidationConfig) -> list[Task]:
    """Read the tasks of `validation.task_files`; none if they are never run.

    Raises:
        ConfigError: there is no such task, or it asks for programs.
        DataError: a task's file cannot be read, or is of no kind that is known.
    """
    if settings.tasks_every == 0:
        return []
    assert settings.task_files is not None
    tasks = [
        read_task(name, path, settings.delimiters.get(name, " "), settings.tasks_limit, settings.tasks_shots)
        for name, path in find_tasks(settings.task_files, settings.tasks).items()
    ]
    for task in tasks:
        if task.kind == "code":
            raise ConfigError(
                f"validation.tasks: {task.name} asks for programs, which are never run while training; list the other "
                "tasks of validation.task_files, and use llama-evaluate for this one"
            )
    return tasks


def run_tasks(
    engine: Engine, config: TrainConfig, shards: ShardRoot, group: dist.ProcessGroup | None, tell: Callable[[str], None]
) -> dict[str, float]:
    """Run the tasks on the live model, on all ranks; return "task/metric" → value.

    Args:
        group: the ranks that answer different requests (`parallel.layout.make_request_group`).

    A task that cannot be run is left out, and `tell` is told why: no run should end for that.
    """
    # Late: a start does not need them, and they import every tokenizer there is.
    from data_pipeline.tokenize import load_tokenizer
    from llama_train.evaluate.score import Scorer
    from llama_train.evaluate.task_scores import run_task

    tokenizer = load_tokenizer(shards.tokenizer_path)
    scorer = Scorer(engine.model, config.model.context, tokenizer, Peers(group), config.layout.micro_batch_size)
    values = {}
    for task in load_tasks(config.validation):
        try:
            numbers = run_task(task, scorer).numbers
        except UserError as error:
            tell(f"task {task.name} could not be run: {error}")
            continue
        values |= {
            f"{task.name}/{metric}": value
            for metric, value in numbers.items()
            if isinstance(value, float) and not metric.endswith("_stderr")
        }
    return values
