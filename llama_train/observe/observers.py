"""Everyone who watches a run, behind one call per step."""

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from llama_foundation.errors import ConfigError
from llama_train.clock import StartClock
from llama_train.config import TrainConfig
from llama_train.observe.console import SilentConsole, make_console
from llama_train.observe.ledger import ledger_of
from llama_train.observe.metrics import (
    Beginning,
    Ending,
    Event,
    MetricsFile,
    Numbers,
    Statistics,
    StepRecord,
    Validation,
    read,
)

METRICS = "metrics.jsonl"
REPORT = "report.html"


class View(Protocol):
    """Something that shows the metrics elsewhere; a run goes on without it if it breaks."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Show numbers after `step` steps."""

    def event(self, message: str, step: int) -> None:
        """Show a line of text after `step` steps."""

    def logger_ids(self) -> dict[str, Any]:
        """What the next attempt needs to go on in the same place, as JSON values."""

    def close(self, failed: bool) -> None:
        """Flush and end."""


class Observers:
    """Writes metrics.jsonl and shows it on the console and in the views that `config.logging` asks for.

    Use as a context manager; at the end, also after an error, everything is closed and report.html is written. On
    processes other than the main one every call does nothing. A view that fails is reported once on standard error
    and left out from then on.

    Args:
        config: the run's configuration.
        run_directory: where metrics.jsonl, report.html and the views' files go.
        main: whether this is the process that speaks (rank 0).
        devices: processes that train, one device each.
        start_step: steps finished before this process began.
        attempt: this process' number from `next_attempt`; None: found in metrics.jsonl.
        logger_ids: what `logger_ids()` gave when the checkpoint was written.

    Raises:
        ConfigError: a view's package is not installed.
        RunError: metrics.jsonl cannot be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_directory: Path,
        main: bool = True,
        devices: int = 1,
        start_step: int = 0,
        attempt: int | None = None,
        logger_ids: dict[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._run_directory = run_directory
        self._main = main
        self._step = start_step
        self._heard = time.perf_counter()  # when the loop began or a step was last recorded
        self._checkpoint_seconds = 0.0  # since then
        self._began = False
        self._ids = dict(logger_ids or {})
        self._views: dict[str, View] = {}
        self._console = SilentConsole()
        self._metrics: MetricsFile | None = None
        self.attempt = attempt or 1
        if not main:
            return
        self._metrics = MetricsFile(run_directory / METRICS)
        self.attempt = attempt or self._metrics.attempt
        self._open_views(start_step)
        self._console = make_console(
            config.logging.console, steps=config.steps, start_step=start_step, every=config.logging.every
        )
        if self.attempt > 1:
            self.event(start_step, f"attempt {self.attempt} goes on after step {start_step} on {devices} devices")

    def __call__(self, record: StepRecord) -> None:
        """Record a finished step."""
        self._step = record.step
        self._heard, self._checkpoint_seconds = time.perf_counter(), 0.0
        if self._metrics is None:
            return
        self._metrics.append(record)
        self._speak(lambda: self._console.step(record))
        self._each_view(lambda view: view.log(_series(record), record.step))

    def begin(self, start: StartClock) -> None:
        """Record that the loop begins, and what the time until here was spent on."""
        self._heard, self._began = time.perf_counter(), True
        if self._metrics is not None:
            self._metrics.append(Beginning(self._step, self.attempt, start.started_at, start.take()))

    def checkpoint_took(self, seconds: float) -> None:
        """Take down seconds that the loop waited for a checkpoint after the last step's record."""
        self._checkpoint_seconds += seconds

    def validation(self, step: int, loss: float) -> None:
        """Record a loss on held-out documents after `step` steps."""
        if self._metrics is None:
            return
        self._metrics.append(Validation(step, self.attempt, loss))
        self._speak(lambda: self._console.line(f"step {step}  validation loss {loss:.4f}"))
        self._each_view(lambda view: view.log({"validation/loss": loss}, step))

    def statistics(self, step: int, parameters: dict[str, Numbers], layers: list[Numbers]) -> None:
        """Record how large weights, gradients and layer outputs were in `step`."""
        if self._metrics is None:
            return
        self._metrics.append(Statistics(step, self.attempt, parameters, layers))
        tables = {**parameters, **{f"layer {layer}": numbers for layer, numbers in enumerate(layers)}}
        values = {f"statistics/{what}/{name}": v for name, numbers in tables.items() for what, v in numbers.items()}
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        self._each_view(lambda view: view.log(finite, step))

    def event(self, step: int, message: str, values: dict[str, float] | None = None) -> None:
        """Record something that a reader of the curves should know, and numbers that have no record of their own."""
        if self._metrics is None:
            return
        self._metrics.append(Event(step, self.attempt, message, values))
        self._speak(lambda: self._console.line(f"step {step}  {message}"))
        self._each_view(lambda view: view.log(values, step) if values else view.event(message, step))

    def rewound(self, step: int, to_step: int) -> None:
        """Record that the run went back from `step` to `to_step` finished steps; what follows is another attempt."""
        self.event(step, f"rewound to step {to_step}, jumping over {step - to_step} batches")
        self.attempt += 1

    def values(self, step: int, what: str, values: dict[str, float]) -> None:
        """Record numbers that have no record of their own, as an event."""
        message = f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.event(step, message, {f"{what}/{name}": value for name, value in values.items()})

    def phase(self, message: str) -> None:
        """Say on the console what begins now."""
        self._speak(lambda: self._console.line(message))

    def logger_ids(self) -> dict[str, Any]:
        """What a checkpoint keeps so that a resumed run goes on in the same places, as JSON values."""
        return dict(self._ids)

    def __enter__(self) -> "Observers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._metrics is None:
            return
        if error is not None:
            with contextlib.suppress(Exception):  # a full disk must not hide what really went wrong
                self.event(self._step, f"stopped by {kind.__name__}: {error}")
        if self._began:
            _try("the ledger", lambda: self._end(self._metrics, failed=error is not None))
        _try("the console", self._console.close)
        for name, view in self._views.items():
            _try(name, lambda view=view: view.close(failed=error is not None))
        if error is None:
            self._metrics.close()
        else:
            _try(METRICS, self._metrics.close)
        if self._config.logging.report:
            _try(REPORT, self._write_report)

    def _end(self, metrics: MetricsFile, failed: bool) -> None:
        since = time.perf_counter() - self._heard
        ending = Ending(self._step, self.attempt, time.time(), since, self._checkpoint_seconds, failed)
        run = ledger_of(itertools.chain(read(metrics.path), [ending]))
        metrics.append(replace(ending, goodput=run.goodput, ledger=run.seconds))
        self._speak(lambda: self._console.line(run.describe()))
        values = {f"ledger/{part}_seconds": seconds for part, seconds in run.seconds.items()}
        self._each_view(lambda view: view.log({"ledger/goodput": run.goodput, **values}, self._step))

    def _write_report(self) -> None:
        from llama_train.observe.report import write_report  # matplotlib takes a second to load

        write_report(self._run_directory)

    def _open_views(self, start_step: int) -> None:
        logging = self._config.logging
        if logging.wandb:
            self._open("wandb", self._open_wandb)
        if logging.tensorboard:
            from llama_train.observe.tensorboard import TensorBoardView

            self._open("tensorboard", lambda: TensorBoardView(self._run_directory, start_step))

    def _open_wandb(self) -> View:
        from llama_train.observe.weights_and_biases import WeightsAndBiasesView

        return WeightsAndBiasesView(
            self._run_directory,
            name=self._config.name,
            project=self._config.logging.wandb_project,
            entity=self._config.logging.wandb_entity,
            config=OmegaConf.to_container(OmegaConf.structured(self._config), resolve=True, enum_to_str=True),
            run_id=self._ids.get("wandb"),
        )

    def _open(self, name: str, make: Callable[[], View]) -> None:
        try:
            self._views[name] = make()
        except ConfigError:
            raise
        except Exception as error:
            _warn(name, error)
        else:
            self._ids.update(self._views[name].logger_ids())

    def _speak(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:
            self._console = SilentConsole()
            _warn("the console", error)

    def _each_view(self, show: Callable[[View], None]) -> None:
        for name, view in list(self._views.items()):
            try:
                show(view)
            except Exception as error:
                del self._views[name]
                _warn(name, error)


def _series(record: StepRecord) -> dict[str, float]:
    """A step's numbers under the names that the views show."""
    values = {
        "train/loss": record.loss,
        "train/learning_rate": record.lr,
        "train/grad_norm": record.grad_norm,
        "train/tokens": record.tokens,
        "speed/tokens_per_second": record.tokens_per_second,
        "speed/tokens_per_second_per_device": record.tokens_per_second_per_device,
        "speed/step_seconds": record.seconds,
        "speed/data_seconds": record.data_seconds,
        "speed/compute_seconds": record.compute_seconds,
        "speed/checkpoint_seconds": record.checkpoint_seconds,
        "speed/memory_bytes": record.memory_bytes,
    }
    if record.pipeline_bubble is not None:
        values["speed/pipeline_bubble"] = record.pipeline_bubble
    if record.mfu is not None:
        values[f"speed/mfu ({record.mfu_formula})"] = record.mfu
    return values


def _try(name: str, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:
        _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    print(f"warning: {name} failed and is left out from here on: {type(error).__name__}: {error}", file=sys.stderr)
