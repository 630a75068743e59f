"""summary.json: a run in a dozen numbers."""

import math
import statistics
from pathlib import Path
from typing import Any

from llama_foundation.errors import RunError
from llama_foundation.files import publish_json
from llama_train.observe.ledger import ledger
from llama_train.observe.metrics import history


def write_summary(path: Path, metrics: Path, finished: bool, **paths: Path | str | None) -> dict[str, Any]:
    """Write summary.json from a metrics file and return what was written.

    Args:
        metrics: the metrics file. `seconds` is the sum over the steps of the run as it stands, and
            `tokens_per_second` their median, so that a slow first step or a checkpoint does not show in it.
        finished: whether the run has done its last step.
        paths: added as they are: where the shards, the checkpoint, the export and the report are.
    """
    steps = history(metrics)
    if not steps:
        raise RunError(f"{metrics}: no step has finished, so there is nothing to sum up")
    validation = [step["validation_loss"] for step in steps if step["validation_loss"] is not None]
    summary = {
        "finished": finished,
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "validation_loss": validation[-1] if validation else None,
        "tokens_per_second": statistics.median(step["tokens_per_second"] for step in steps),
        "seconds": math.fsum(step["seconds"] for step in steps),
        "attempts": steps[-1]["attempt"],
        "goodput": ledger(metrics).goodput,
        **{name: str(value) for name, value in paths.items()},
    }
    publish_json(path, summary)
    return summary
