"""llama-inspect run=DIR step=N: the documents behind a step.

Also `python -m llama_train.inspect run=DIR step=N`. Steps are counted as in metrics.jsonl: the first is 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.data.amendments import read_amendments

if TYPE_CHECKING:
    from llama_train.data.order import Document


@dataclass
class InspectConfig:
    """Which step of which run, and how much of it to print."""

    run: str = MISSING  # the run directory: output/name of llama-train
    step: int = MISSING  # finished optimizer steps, this one included: the first step is 1
    limit: int = 50  # documents printed; 0: all
    first_words: int = 12  # words of each document printed, of those that the shards keep

    def check(self) -> None:
        for name, least in (("step", 1), ("limit", 0), ("first_words", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")


def main() -> int:
    """Run llama-inspect; return the exit status."""
    return compose.main("inspect", InspectConfig, inspect)


def inspect(config: InspectConfig) -> None:
    """Print the documents behind a step as a table.

    Raises:
        ConfigError: there is no such run or step.
        DataError: its shards are missing or damaged.
    """
    from llama_train.data.order import TokenOrder  # late: it imports torch, which --help does not need

    run = Path(config.run)
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"run={config.run}: {run / 'config.yaml'} does not exist; give the directory of a run")
    train = compose.load(run / "config.yaml", TrainConfig)
    if config.step > train.steps:
        raise ConfigError(f"step={config.step}: the run has steps 1 to {train.steps}")
    step = config.step - 1  # the order counts from 0
    order = TokenOrder(train.data, train.steps, train.seed, read_amendments(run))
    documents = order.documents(step, config.limit + 1 if config.limit else None)
    more = config.limit > 0 and len(documents) > config.limit
    console = Console()
    samples = order.samples(step)
    console.print(
        f"step {config.step} of {run}: samples {samples.start} to {samples.stop - 1}, {len(samples)} sequences of "
        f"{order.sequence_length(step)} tokens",
        markup=False,
        highlight=False,
    )
    console.print(_table(documents[: config.limit] if more else documents, config.first_words))
    if more:
        console.print(f"more documents than limit={config.limit}; limit=0 prints all", markup=False, highlight=False)


def _table(documents: list[Document], first_words: int) -> Table:
    table = Table(expand=False)
    table.add_column("source", no_wrap=True)
    table.add_column("file", overflow="fold")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("sample", justify="right", overflow="fold")
    table.add_column("first words", overflow="ellipsis", ratio=1)
    for document in documents:
        words = " ".join(document.first_words.split()[:first_words])
        table.add_row(
            *(_plain(text) for text in (document.source, document.file)),
            str(document.row),
            _numbers(document.samples),
            _plain(words),
        )
    return table


def _numbers(samples: tuple[int, ...]) -> str:
    shown = ", ".join(str(sample) for sample in samples[:3])
    return f"{shown} and {len(samples) - 3} more" if len(samples) > 3 else shown


def _plain(text: str) -> Text:
    """Text of documents: its brackets are no markup, and its control characters do not reach the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text))


if __name__ == "__main__":
    sys.exit(main())
