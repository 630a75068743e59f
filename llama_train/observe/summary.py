"""summary.json: a run in a dozen numbers."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_foundation.errors import RunError
from llama_foundation.files import publish_json
from llama_train.observe.ledger import ledger
from llama_train.observe.metrics import history


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean training loss of the last tenth of the steps: one step's is too noisy to rank runs by."""
    return statistics.fmean(losses[-max(len(losses) // 10, 1) :]) if len(losses) else math.nan


def objective(directory: Path) -> float | None:
    """Return what a search over settings minimises of a run, in nats per token.

    It is the loss of the last validation, or `final_loss` where the run validates nothing; None if the run is not
    finished, or the loss is not a number.
    """
    try:
        summary = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    if not summary["finished"]:
        return None
    loss = summary["validation_loss"]
    if loss is None:
        loss = final_loss([step["loss"] for step in history(directory / "metrics.jsonl")])
    return float(loss) if math.isfinite(loss) else None


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
