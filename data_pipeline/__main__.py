"""llama-data pipeline=PRESET input.paths=[FILE_OR_GLOB,...] output=DIR workers=N engine=local"""

import sys

from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from llama_foundation.compose import main as command


def main() -> int:
    """Clean, deduplicate and tokenise raw text; return the exit status."""
    return command("data", DataPipelineConfig, run)


if __name__ == "__main__":
    sys.exit(main())
