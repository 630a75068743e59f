"""Numbers that are no numbers: which data, and where to go back to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llama_foundation.errors import RunError

_SHOWN = 10


class DocumentPlace(Protocol):
    """Where a document came from; `row` counts from 0 in `file`."""

    source: str
    file: str
    row: int


def describe_non_finite(
    step: int,
    loss: float,
    grad_norm: float,
    documents: Sequence[DocumentPlace],
    last_checkpoint: Path | None,
) -> RunError:
    """Return the error that ends a run whose loss or gradient norm is not finite.

    Args:
        step: the step that failed, counted from 1; the weights are still those of the step before.
        documents: those that the step's batch was made of.
        last_checkpoint: the newest complete one.
    """
    lines = [f"step {step}: loss={loss}, grad_norm={grad_norm}; the weights were left as they were before this step"]
    if documents:
        shown = ":" if len(documents) <= _SHOWN else f"; the first {_SHOWN}:"
        lines.append(f"documents in its batch: {len(documents)}{shown}")
        lines += [f"  {place.source}: {place.file}, row {place.row}" for place in documents[:_SHOWN]]
    if last_checkpoint is None:
        lines.append(
            "no checkpoint has been written yet; start again, for example with a lower optimizer.learning_rate"
        )
    else:
        lines.append(
            f"last good checkpoint: {last_checkpoint}; the same command resumes from it and, on the same data, "
            "comes here again: lower optimizer.learning_rate or leave the documents out first"
        )
    return RunError("\n".join(lines))
