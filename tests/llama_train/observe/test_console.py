import io
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from made_up_steps import step_record
from rich.console import Console as RichConsole

from llama_train.config import ConsoleName
from llama_train.observe.console import LineConsole, ProgressConsole, SilentConsole, duration, make_console


def _lines(name: ConsoleName, **options) -> tuple[io.StringIO, object]:
    text = io.StringIO()
    arguments = {"steps": 300, "start_step": 0, "every": 10, **options}
    return text, make_console(name, console=RichConsole(file=text, soft_wrap=True, highlight=False), **arguments)


def test_a_plain_line_reads_as_documented():
    text, console = _lines(ConsoleName.lines)
    console.step(step_record(120, loss=4.2312, grad_norm=0.812, tokens_per_second=6120.4, seconds=0.38889))
    assert text.getvalue() == "step 120/300  loss 4.231  lr 3.0e-04  grad 0.81  6,120 tok/s  eta 0:01:10\n"


def test_lines_come_for_the_first_every_tenth_and_the_last_step():
    text, console = _lines(ConsoleName.lines, steps=25, start_step=3)
    for step in range(4, 26):
        console.step(step_record(step))
    console.line("phase: [export] 100%")
    said = text.getvalue().splitlines()
    assert [line.split("/")[0].split()[-1] for line in said[:-1]] == ["4", "10", "20", "25"]
    assert said[-1] == "phase: [export] 100%"


def test_auto_means_lines_without_a_terminal_and_none_is_silent():
    assert isinstance(_lines(ConsoleName.auto)[1], LineConsole)
    assert isinstance(_lines(ConsoleName.progress)[1], ProgressConsole)
    text, console = _lines(ConsoleName.none)
    console.line("hush")
    assert isinstance(console, SilentConsole)
    assert text.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (70.2, "0:01:10"), (3600, "1:00:00"), (90061, "1d 1:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


SHOW = textwrap.dedent("""
    import sys
    from llama_train.config import ConsoleName
    from llama_train.observe.console import make_console
    from made_up_steps import step_record
    console = make_console(ConsoleName.auto, steps=300, start_step=100, every=1)
    for step in range(101, 121):
        console.step(step_record(step, loss=4.231))
        console.line(f"event at {step}")
    console.close()
    print("the end", file=sys.stderr)
""")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")},
    "TERM": "xterm",
    "COLUMNS": "120",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parent)]),
}


@pytest.mark.timeout(60)
def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left():
    master, slave = pty.openpty()
    shown = subprocess.Popen([sys.executable, "-c", SHOW], stdout=slave, env=ENVIRONMENT)
    os.close(slave)
    output = b""
    while True:
        try:
            output += os.read(master, 4096)
        except OSError:
            break
    os.close(master)
    assert shown.wait(timeout=30) == 0
    text = output.decode()
    assert "step 120/300" in text
    assert "loss 4.231  lr 3.0e-04  grad 0.81  2,000 tok/s  eta 0:01:30" in text
    assert "event at 110" in text


@pytest.mark.timeout(60)
def test_a_reader_that_goes_away_does_not_stop_the_run():
    command = f"{sys.executable} -c '{SHOW}' | head -n 1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=50
    )
    assert (ended.returncode, ended.stderr) == (0, "the end\n")
