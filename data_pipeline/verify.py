"""llama-data verify output=DIR: check every block of every shard, and of the work folder if asked."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from data_pipeline.engines.work import Block, committed_blocks, read_block
from data_pipeline.shards.manifest import ROOT
from data_pipeline.shards.verify import verify as verify_shards
from data_pipeline.workspace import WORK
from llama_foundation.errors import ConfigError, DataError


@dataclass
class VerifyConfig:
    """What to check."""

    output: str = MISSING  # the output directory of llama-data
    work: bool = False  # check the blocks that finished tasks left in .work, too


def verify(config: VerifyConfig) -> int:
    """Check, and print what is wrong to stderr; return 1 if anything is."""
    output = Path(config.output)
    finished = (output / ROOT).exists()
    if not finished and not (config.work and (output / WORK).is_dir()):
        raise ConfigError(
            f"output={output} has no {ROOT}: llama-data did not finish there. See llama-data status output={output}; "
            "work=true checks what there is"
        )
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    problems: list[str] = []
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:

        def bar(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        if finished:
            problems += verify_shards(output, bar("shards"))
        if config.work:
            problems += work_problems(output / WORK, bar("work"))
    for problem in problems:
        print(f"damaged: {problem}", file=sys.stderr)
    if not problems:
        print(f"{output}: every block is as it was written" + ("" if finished else "; the run is not finished"))
    return 1 if problems else 0


def work_problems(work: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Return what is wrong with the blocks of the committed tasks, one sentence each, naming the file."""
    problems: list[str] = []
    blocks: list[Block] = []
    for path in sorted(work.glob("*/*.json")):
        try:
            blocks += committed_blocks(path.parent, json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            problems.append(f"{path} cannot be read as a commit; delete it, and run the same command again")
    done, total = 0, sum(block.length for block in blocks)
    for block in blocks:
        try:
            read_block(block)
        except DataError as error:
            problems.append(str(error))
        done += block.length
        progress(done, total)
    return problems
