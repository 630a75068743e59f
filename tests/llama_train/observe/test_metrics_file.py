import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from made_up_steps import step_record

from llama_foundation.errors import DataError, RunError
from llama_train.observe.metrics import Event, MetricsFile, Validation, history, next_attempt, read, superseding
from llama_train.observe.summary import write_summary


def test_a_step_is_one_json_line_with_every_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(step_record(1, loss=9.5, mfu=0.4, mfu_formula="PaLM"))
    line = json.loads(path.read_text())
    expected = {"kind": "step", "step": 1, "attempt": 1, "tokens": 1000, "loss": 9.5, "lr": 3e-4, "grad_norm": 0.8125}
    assert expected.items() <= line.items()
    assert {"seconds", "tokens_per_second", "tokens_per_second_per_device", "memory_bytes", "mfu"} <= line.keys()


def test_a_line_is_on_file_before_append_returns(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(step_record(1))
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 1
    file.close()


def test_a_resumed_run_writes_behind_what_is_there_and_its_steps_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for step in range(1, 6):
            file.append(step_record(step, file.attempt, loss=1.0))
            file.append(Validation(step, file.attempt, 2.0))
    before = path.read_bytes()
    with MetricsFile(path) as file:
        assert file.attempt == 2
        for step in (3, 4):
            file.append(step_record(step, file.attempt, loss=7.0))
        file.append(Validation(4, file.attempt, 8.0))
    assert path.read_bytes().startswith(before)
    assert next_attempt(path) == 3
    rows = [(row["step"], row["attempt"], row["loss"], row["validation_loss"]) for row in history(path)]
    # step 5 of the first attempt is gone: the weights that exist have not seen it
    assert rows == [(1, 1, 1.0, 2.0), (2, 1, 1.0, 2.0), (3, 2, 7.0, None), (4, 2, 7.0, 8.0)]


def test_an_attempt_that_finished_no_step_undoes_nothing_but_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(step_record(1))
    with MetricsFile(path) as file:
        file.append(Event(0, file.attempt, "tried"))
    assert [row["attempt"] for row in history(path)] == [1]
    assert next_attempt(path) == 3


@pytest.mark.parametrize("torn", [b'{"kind": "step", "st', b"{", b'{"a": "' + b"x" * 3_000_000, b"\0" * 100])
def test_a_torn_last_line_is_cut_off_and_swallows_nothing(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(step_record(1))
        file.append(step_record(2))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [row["step"] for row in history(path)] == [1, 2]
    assert next_attempt(path) == 2
    with MetricsFile(path) as file:
        assert file.attempt == 2
        assert path.read_bytes() == whole
        file.append(step_record(3, 2))
    assert [row["step"] for row in history(path)] == [1, 2, 3]


def test_a_file_of_nothing_but_a_torn_line_starts_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "st')
    with MetricsFile(path) as file:
        assert file.attempt == 1
    assert path.read_bytes() == b""


def test_a_killed_writer_loses_no_finished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from made_up_steps import step_record
        from llama_train.observe.metrics import MetricsFile
        file = MetricsFile(Path(sys.argv[1]))
        for step in range(1, 10**9):
            file.append(step_record(step))
            print(step, flush=True)
    """)
    roots = os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": roots}
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    for _ in range(200):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    told = [int(line) for line in writer.communicate(timeout=20)[0].splitlines() if line]
    steps = [row["step"] for row in history(path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= max(told, default=200)


@pytest.mark.parametrize("bad", [b"not json\n", b'{"kind": "dream"}\n', b"[]\n", b'{"kind": "event", "step": 1}\n'])
def test_a_damaged_line_in_the_middle_is_refused_by_number(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(step_record(1))
    path.write_bytes(path.read_bytes() + bad + path.read_bytes())
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is damaged; delete that line"):
        history(path)


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(step_record(1))
        whole = path.read_bytes()
        real = file._file

        class Full:
            def write(self, data):
                real.write(data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

            def __getattr__(self, name):
                return getattr(real, name)

        file._file = Full()
        with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
            file.append(step_record(2))
        file._file = real
    assert path.read_bytes() == whole


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(Validation(1, 1, math.nan))
    assert json.loads(path.read_text())["validation_loss"] is None


def test_events_of_earlier_attempts_stay():
    records = [step_record(1), Event(1, 1, "SIGTERM"), step_record(1, 2), Event(1, 2, "done")]
    steps, _, events = superseding(records)
    assert [step.attempt for step in steps] == [2]
    assert [event.message for event in events] == ["SIGTERM", "done"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such metrics file"):
        list(read(tmp_path / "nowhere.jsonl"))


def test_the_summary_is_what_the_steps_say(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for step, speed in ((1, 10.0), (2, 2000.0), (3, 2200.0)):
            file.append(step_record(step, loss=10.0 - step, tokens_per_second=speed, seconds=0.25))
        file.append(Validation(2, 1, 8.5))
    written = write_summary(
        tmp_path / "summary.json", path, True, checkpoint=tmp_path / "checkpoints", report="report.html"
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == written
    assert written == {
        "finished": True,
        "steps": 3,
        "tokens": 3000,
        "loss_first": 9.0,
        "loss_last": 7.0,
        "validation_loss": 8.5,
        "tokens_per_second": 2000.0,
        "seconds": 0.75,
        "attempts": 1,
        "goodput": pytest.approx(0.8 / 0.9),  # made-up steps, whose parts are longer than they are
        "checkpoint": str(tmp_path / "checkpoints"),
        "report": "report.html",
    }
    MetricsFile(tmp_path / "none.jsonl").close()
    with pytest.raises(RunError, match="no step has finished"):
        write_summary(tmp_path / "summary.json", tmp_path / "none.jsonl", False)
