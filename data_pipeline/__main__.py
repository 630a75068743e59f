"""llama-data pipeline=PRESET input.paths=[FILE_OR_GLOB,...] output=DIR workers=N engine=local"""

import sys

from data_pipeline import forecast, what_if
from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from llama_foundation.compose import main as command

COMMANDS = {
    "forecast": ("data_forecast", forecast.ForecastConfig, forecast.forecast),
    "what-if": ("data_what_if", what_if.WhatIfConfig, what_if.run),
}
"""First word of the command line -> its entry file, its settings, what it does."""


def main() -> int:
    """Clean, deduplicate and tokenise raw text, or do what the first word says; return the exit status."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        return command(*COMMANDS[sys.argv.pop(1)])
    return command("data", DataPipelineConfig, run)


if __name__ == "__main__":
    sys.exit(main())
