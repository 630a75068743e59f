"""Numbers that are no numbers, and losses far above the ones before: what is done, and with which data it happened."""

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llama_foundation.errors import NumbersError, RunError
from llama_foundation.files import publish_text
from llama_train.config import OnNonFinite, OnSpike, SurviveConfig
from llama_train.data.order import TokenOrder
from llama_train.engine.engine import RefusedUpdate

_SHOWN = 10


class DocumentPlace(Protocol):
    """Where a document came from; `row` counts from 0 in `file`."""

    source: str
    file: str
    row: int


@dataclass
class Anomalies:
    """What a run has been through; a checkpoint keeps it, so that a resumed run decides as one left alone.

    `losses` are those of the last updates that were made, at most a window of them.
    """

    config: SurviveConfig
    interventions: int = 0  # updates skipped and rewinds
    losses: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = deque(maxlen=self.config.spike_window)

    def threshold(self) -> float:
        """Return the loss above which the next step is a spike; infinity while too few are known."""
        if self.config.spike is OnSpike.ignore or len(self.losses) < self.config.spike_window:
            return math.inf
        deviation = statistics.pstdev(self.losses)
        return statistics.fmean(self.losses) + self.config.spike_sigma * deviation

    def most_loss(self) -> float:
        """Return the loss up to which the next update is to be made."""
        return self.threshold() if self.config.spike in (OnSpike.skip, OnSpike.rewind) else math.inf

    def made(self, loss: float) -> str | None:
        """Take down the loss of an update that was made; say so if it was a spike."""
        threshold = self.threshold()
        self.losses.append(loss)
        return f"loss spike: {loss:.4f} is above {threshold:.4f}" if loss > threshold else None

    def refused(self, refused: RefusedUpdate) -> OnSpike | None:
        """Count a refused update; return whether to skip it or to rewind, or None if the run must stop."""
        if not refused.finite and self.config.non_finite is OnNonFinite.stop:
            return None
        self.interventions += 1
        if self.interventions > self.config.most_interventions:
            return None
        return OnSpike.rewind if refused.finite and self.config.spike is OnSpike.rewind else OnSpike.skip

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return {"interventions": self.interventions, "losses": list(self.losses)}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.interventions = state["interventions"]
        self.losses = deque(state["losses"], maxlen=self.config.spike_window)


def describe_refused(
    step: int,
    refused: RefusedUpdate,
    anomalies: Anomalies,
    documents: Sequence[DocumentPlace],
    last_checkpoint: Path | None,
    again: tuple[float, float],
) -> RunError:
    """Return the error that ends a run whose update was refused.

    Args:
        step: the step that failed, counted from 1; the weights are still those of the step before.
        documents: those that the step's batch was made of.
        last_checkpoint: the newest complete one.
        again: loss and gradient norm of the step computed once more.

    Returns:
        A `NumbersError`, with which a job is not tried again; of numbers that were finite the second time a plain
        `RunError`, because the machine is at fault, and another one may do better.
    """
    machine = not refused.finite and all(map(math.isfinite, again))
    lines = [
        f"step {step}: loss={refused.loss}, grad_norm={refused.grad_norm}; "
        "the weights were left as they were before this step",
        *describe_documents(documents),
    ]
    if anomalies.interventions > anomalies.config.most_interventions:
        lines.append(
            f"survive.most_interventions={anomalies.config.most_interventions} updates skipped and rewinds are used "
            "up: this is no single bad batch; lower optimizer.learning_rate, or allow more"
        )
    if last_checkpoint is None:
        lines.append(
            "no checkpoint has been written yet; start again, for example with a lower optimizer.learning_rate"
        )
    else:
        lines.append(
            f"last good checkpoint: {last_checkpoint}; the same command resumes from it and, on the same data, "
            "comes here again: lower optimizer.learning_rate, leave the documents out, or set survive.non_finite=skip"
        )
    return (RunError if machine else NumbersError)("\n".join(lines))


def jumped_over(
    run_directory: Path, main: bool, order: TokenOrder, steps: range, tell: Callable[[int, str], None]
) -> None:
    """Write the documents of batches that were not trained on into RUN/logs, and tell how many and where.

    Args:
        main: whether this is rank 0; the others do nothing.
        order: the order that those batches were of.
        steps: of those batches, counted from 0.
        tell: told (the last of those steps, counted from 1; a line).
    """
    if not main:
        return
    path = run_directory / "logs" / f"jumped-over-at-step-{steps.stop:08d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [(step, document) for step in steps for document in order.documents(step)]
    lines = [json.dumps({"step": step + 1, **asdict(document)}, ensure_ascii=False) + "\n" for step, document in found]
    publish_text(path, "".join(lines))
    last = [document for step, document in found if step == steps[-1]]
    described = "\n".join(describe_documents(last))
    tell(steps.stop, f"batches not trained on: {len(steps)}, with {len(found)} documents, all in {path}; {described}")


def describe_documents(documents: Sequence[DocumentPlace]) -> list[str]:
    """Return lines that name the first of a batch's documents."""
    if not documents:
        return []
    shown = ":" if len(documents) <= _SHOWN else f"; the first {_SHOWN}:"
    lines = [f"documents in its batch: {len(documents)}{shown}"]
    return lines + [f"  {place.source}: {place.file}, row {place.row}" for place in documents[:_SHOWN]]
