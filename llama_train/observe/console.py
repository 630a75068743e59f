"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Protocol

from llama_train.config import ConsoleName
from llama_train.observe.metrics import StepRecord

if TYPE_CHECKING:  # rich is imported late: most ranks say nothing
    from rich.console import Console as RichConsole
    from rich.text import Text

_RECENT = 20
"""The time that is left is guessed from this many steps."""


class Console(Protocol):
    """Where a run speaks to a person."""

    def step(self, record: StepRecord) -> None:
        """Show a finished step."""

    def line(self, message: str) -> None:
        """Show one line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_console(
    name: ConsoleName, *, steps: int, start_step: int, every: int, console: RichConsole | None = None
) -> Console:
    """Build the console that `logging.console` names.

    Args:
        steps: of the whole run.
        start_step: steps that were finished before this process began.
        every: steps between plain lines.
        console: where to write; standard output if not given.
    """
    if name is ConsoleName.none:
        return SilentConsole()
    console = console or _terminal()
    if name is ConsoleName.auto:
        name = ConsoleName.progress if console.is_terminal else ConsoleName.lines
    if name is ConsoleName.progress:
        return ProgressConsole(console, steps, start_step)
    return LineConsole(console, steps, start_step, every)


def _terminal() -> RichConsole:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            """Whoever read the output went away (`| head`): go on without it, where rich would exit."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return Terminal(highlight=False, soft_wrap=True)


class SilentConsole:
    """Says nothing."""

    def step(self, record: StepRecord) -> None:
        pass

    def line(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class LineConsole:
    """One plain line for the first, every n-th and the last step; one for each event."""

    def __init__(self, console: RichConsole, steps: int, start_step: int, every: int) -> None:
        self._console = console
        self._steps = steps
        self._first = start_step + 1
        self._every = max(1, every)
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def step(self, record: StepRecord) -> None:
        self._recent.append(record.seconds)
        if record.step in (self._first, self._steps) or record.step % self._every == 0:
            self.line(
                f"step {record.step:>{len(str(self._steps))}}/{self._steps}  {describe(record)}  "
                f"eta {duration(remaining_seconds(self._recent, self._steps - record.step))}"
            )

    def line(self, message: str) -> None:
        self._console.print(_text(message))

    def close(self) -> None:
        pass


class ProgressConsole:
    """A bar that moves with every step; events scroll past above it."""

    def __init__(self, console: RichConsole, steps: int, start_step: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._steps = steps
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
            expand=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=steps, completed=start_step, numbers="starting")
        self._progress.start()

    def step(self, record: StepRecord) -> None:
        self._recent.append(record.seconds)
        left = duration(remaining_seconds(self._recent, self._steps - record.step))
        self._progress.update(self._task, completed=record.step, numbers=f"{describe(record)}  eta {left}")

    def line(self, message: str) -> None:
        self._progress.console.print(_text(message))

    def close(self) -> None:
        self._progress.stop()


def _text(message: str) -> Text:
    from rich.text import Text

    return Text(message)  # no markup: a message may hold brackets


def describe(record: StepRecord) -> str:
    """The numbers of a step as a person reads them."""
    return (
        f"loss {record.loss:.3f}  lr {record.lr:.1e}  grad {record.grad_norm:.2f}  "
        f"{record.tokens_per_second:,.0f} tok/s"
    )


def remaining_seconds(recent: deque[float], steps_left: int) -> float:
    """How long `steps_left` steps take if they go on as `recent` ones did."""
    return sum(recent) / len(recent) * steps_left


def duration(seconds: float) -> str:
    """Seconds as H:MM:SS, with days in front where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
