"""llama-data pipeline=PRESET input.paths=[FILE_OR_GLOB,...] output=DIR workers=N engine=local|ray|array

llama-data status output=DIR     what is done and what is missing
llama-data verify output=DIR     check every block of the shards
llama-data what-if output=DIR ... what other thresholds would keep
llama-data check-dedup ...       what the deduplications find of copies planted in the input
llama-data forecast ...          hours, memory and disk of the same run, from two samples of its input
"""

import sys
from collections.abc import Callable
from typing import Any

from data_pipeline import forecast, what_if
from data_pipeline.check_dedup import DedupCheckConfig, check_dedup
from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from data_pipeline.status import StatusConfig, status
from data_pipeline.verify import VerifyConfig, verify
from llama_foundation.compose import main as command

COMMANDS: dict[str, tuple[str, type, Callable[[Any], int | None]]] = {
    "status": ("status", StatusConfig, status),
    "verify": ("verify", VerifyConfig, verify),
    "what-if": ("data_what_if", what_if.WhatIfConfig, what_if.run),
    "check-dedup": ("data_check_dedup", DedupCheckConfig, check_dedup),
    "forecast": ("data_forecast", forecast.ForecastConfig, forecast.forecast),
}
"""First word -> its entry file in configs/ or configs/commands/, its settings, and what it does."""


def main() -> int:
    """Clean, deduplicate and tokenise raw text, or what the first word says; return the exit status."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        return command(*COMMANDS[sys.argv.pop(1)])
    return command("data", DataPipelineConfig, run)


if __name__ == "__main__":
    sys.exit(main())
