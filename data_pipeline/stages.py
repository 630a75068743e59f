"""What a stage is, and which ones there are.

A local stage looks at one document at a time. A global stage compares documents: it is a short chain of phases of its
own. Both carry a VERSION that rises with every change of what they keep or write, because finished work is reused as
long as it stays the same.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import decontaminate
from data_pipeline.chain import Chain
from data_pipeline.counting import count_batch
from data_pipeline.dedup import exact, lines, minhash, semantic, substring, url
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block
from data_pipeline.extract import extract
from data_pipeline.filters import (
    c4,
    fineweb,
    gopher_quality,
    gopher_repetition,
    language,
    llama3,
    nsfw,
    perplexity,
    pii,
    quality,
    refinedweb,
    token_kl,
    url_list,
)
from data_pipeline.filters.measure import KEEP, Measurement, Rule, decide
from data_pipeline.report.statistics import StageStatistics


def no_files(settings: Any) -> list[Path]:
    """Return nothing: the stage reads nothing but documents and settings."""
    return []


def no_rules(settings: Any) -> list[Rule]:
    """Return nothing: no threshold on a score decides."""
    return []


@dataclass(frozen=True)
class LocalStage:
    """`measure(documents, settings)` scores a batch, and may edit it; `rules(settings)` are its thresholds in order."""

    name: str
    version: int
    measure: Callable[[Documents, Any], Measurement]
    rules: Callable[[Any], list[Rule]]
    files: Callable[[Any], list[Path]] = no_files  # inputs besides the documents whose content decides what is kept


@dataclass(frozen=True)
class GlobalStage:
    """`run(chain, blocks, settings)` returns the blocks that stay and the statistics of the stage."""

    name: str
    version: int
    run: Callable[[Chain, list[Block], Any], tuple[list[Block], list[StageStatistics]]]
    rules: Callable[[Any], list[Rule]] = no_rules  # thresholds on scores, which report and dataset card show


STAGES: dict[str, LocalStage | GlobalStage] = {
    stage.name: stage
    for stage in (
        *(
            LocalStage(module.NAME, module.VERSION, module.measure, module.rules, getattr(module, "files", no_files))
            for module in (
                extract,
                url_list,
                language,
                gopher_quality,
                gopher_repetition,
                c4,
                fineweb,
                refinedweb,
                llama3,
                nsfw,
                quality,
                perplexity,
                pii,
            )
        ),
        *(
            GlobalStage(module.NAME, module.VERSION, module.run)
            for module in (url, exact, lines, minhash, substring, semantic, decontaminate)
        ),
        GlobalStage(token_kl.NAME, token_kl.VERSION, token_kl.run, token_kl.rules),
    )
}
"""Every stage that a preset can list, and the settings of each are `PipelineConfig.<name>`."""


def apply_local(
    stage: LocalStage, documents: Documents, settings: Any, statistics: StageStatistics, seed: int
) -> Documents:
    """Take a batch through a stage; return the documents that stay, edited and with their scores, and count all."""
    started = time.process_time_ns()
    rules = stage.rules(settings)
    measurement = stage.measure(documents, settings)
    verdicts, reasons = decide(measurement, rules, len(documents))
    edited = documents.with_measurement(stage.name, measurement)
    kept = edited.select(verdicts == KEEP)
    count_batch(statistics, documents, kept, verdicts, reasons, measurement, rules, seed)
    statistics.cpu_milliseconds += (time.process_time_ns() - started + 500_000) // 1_000_000
    return kept
