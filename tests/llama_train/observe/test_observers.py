import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_steps import step_record

from llama_foundation.errors import ConfigError
from llama_train.config import ConsoleName, LoggingConfig, TrainConfig
from llama_train.observe import tensorboard
from llama_train.observe.metrics import history
from llama_train.observe.observers import Observers
from llama_train.observe.weights_and_biases import has_key


def _config(**logging) -> TrainConfig:
    config = TrainConfig(steps=10, name="tiny", logging=LoggingConfig(console=ConsoleName.lines, every=5, **logging))
    model = {"vocab_size": 8, "hidden_size": 8, "layers": 1, "heads": 1, "kv_heads": 1, "ffn_size": 8, "context": 8}
    for name, value in {"name": "toy", **model}.items():
        setattr(config.model, name, value)
    config.data.shards, config.data.sequence_length, config.data.batch_size = "shards", 8, 1
    config.optimizer.learning_rate = 1e-3
    return config


class Recorder:
    """A view that remembers, and breaks at a step if told so."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.logged, self.events, self.failed, self.breaks_at = [], [], None, breaks_at

    def log(self, values, step):
        if step == self.breaks_at:
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def event(self, message, step):
        self.events.append((step, message))

    def logger_ids(self):
        return {"tensorboard": "an id"}

    def close(self, failed):
        self.failed = failed


@pytest.fixture
def recorder(monkeypatch):
    view = Recorder()
    monkeypatch.setattr(tensorboard, "TensorBoardView", lambda run_directory, start_step: view)
    return view


def test_steps_validations_and_events_reach_file_console_and_views(tmp_path, capsys, recorder):
    with Observers(_config(tensorboard=True), tmp_path) as observe:
        observe.phase("training")
        for step in range(1, 11):
            observe(step_record(step, observe.attempt))
        observe.validation(10, 8.5)
        observe.event(10, "SIGTERM")
        assert observe.logger_ids() == {"tensorboard": "an id"}
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["step"] * 10 + ["validation", "event"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "training"
    assert [line.split()[1] for line in said[1:4]] == ["1/10", "5/10", "10/10"]
    assert said[4:] == ["step 10  validation loss 8.5000", "step 10  SIGTERM"]
    assert [step for step, _ in recorder.logged] == [*range(1, 11), 10]
    assert recorder.logged[0][1]["train/loss"] == step_record(1).loss
    assert recorder.logged[-1][1] == {"validation/loss": 8.5}
    assert (recorder.events, recorder.failed) == ([(10, "SIGTERM")], False)
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_only_the_main_process_writes(tmp_path, capsys, recorder):
    with Observers(_config(tensorboard=True), tmp_path, main=False, attempt=2) as observe:
        observe(step_record(1))
        observe.validation(1, 8.5)
        observe.event(1, "x")
        observe.phase("x")
        assert observe.logger_ids() == {}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert recorder.logged == []


def test_a_resumed_run_continues_file_and_ids_and_says_so(tmp_path, capsys):
    with Observers(_config(report=False), tmp_path) as observe:
        observe(step_record(1))
        observe(step_record(2))
    ids = {"wandb": "abc"}
    with Observers(_config(report=False), tmp_path, devices=4, start_step=1, logger_ids=ids) as observe:
        assert observe.attempt == 2
        assert observe.logger_ids() == ids
        observe(step_record(2, observe.attempt))
    assert [(row["step"], row["attempt"]) for row in history(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2)]
    assert "attempt 2 goes on after step 1 on 4 devices" in capsys.readouterr().out


def test_a_broken_view_is_reported_once_and_the_run_goes_on(tmp_path, capsys, recorder):
    recorder.breaks_at = 2
    with Observers(_config(tensorboard=True), tmp_path) as observe:
        for step in range(1, 5):
            observe(step_record(step))
    assert [step for step, _ in recorder.logged] == [1]
    assert len(history(tmp_path / "metrics.jsonl")) == 4
    stderr = capsys.readouterr().err
    assert stderr == "warning: tensorboard failed and is left out from here on: ConnectionError: no route to host\n"


def test_an_error_comes_through_after_everything_is_closed(tmp_path, recorder):
    observe = Observers(_config(tensorboard=True), tmp_path)
    observe(step_record(1))
    with pytest.raises(ZeroDivisionError), observe:
        raise ZeroDivisionError("at step 2")
    assert recorder.failed is True
    page = (tmp_path / "report.html").read_text()
    assert "stopped by ZeroDivisionError: at step 2" in page


def test_a_report_that_fails_does_not_hide_the_error_nor_fail_a_run(tmp_path, monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        with Observers(_config(), tmp_path):
            raise ZeroDivisionError
    with Observers(_config(), tmp_path):
        pass
    assert capsys.readouterr().err.count("warning: report.html failed") == 2


def test_a_missing_package_is_refused_by_setting(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logging\.wandb=true needs the package wandb.*pip install wandb"):
        Observers(_config(wandb=True), tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"logging\.tensorboard=true needs the package tensorboard"):
        Observers(_config(tensorboard=True), tmp_path)


def test_a_key_is_found_in_the_environment_or_in_netrc(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    (tmp_path / "netrc").write_text("machine example.org login a password b\n")
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert has_key()
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_key()


def test_tensorboard_shows_the_steps_of_the_newest_attempt(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, loss in ((0, 1.0), (2, 7.0)):
        view = tensorboard.TensorBoardView(tmp_path, start)
        for step in range(start + 1, start + 5):
            view.log({"train/loss": loss}, step)
        view.close(failed=False)
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    scalars = [(scalar.step, scalar.value) for scalar in seen.Scalars("train/loss")]
    assert scalars == [(1, 1.0), (2, 1.0), (3, 7.0), (4, 7.0), (5, 7.0), (6, 7.0)]


WANDB = """
import sys
from pathlib import Path
from llama_train.observe.weights_and_biases import WeightsAndBiasesView
directory, run_id, start = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
view = WeightsAndBiasesView(directory, "tiny", "project", None, {"steps": 10}, run_id)
for step in range(start + 1, start + 4):
    view.log({"train/loss": 10.0 * start + step}, step)
view.event("stopped", start + 3)
print(view.logger_ids()["wandb"])
view.close(failed=False)
"""


@pytest.mark.timeout(120)
def test_wandb_without_a_key_is_offline_silent_and_keeps_what_a_resumed_run_logs_again(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    run_id = ""
    for start in (0, 1):
        ended = subprocess.run(
            [sys.executable, "-c", WANDB, str(tmp_path), run_id, str(start)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert run_id in ("", ended.stdout.strip())
        run_id = ended.stdout.strip()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    logged = [row for file in files for row in _history_of(file)]
    losses = [(row["step"], row["train/loss"]) for row in logged if "train/loss" in row]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0), (2, 12.0), (3, 13.0), (4, 14.0)]
    assert [row["event"] for row in logged if "event" in row] == ["stopped", "stopped"]


def _history_of(file: Path) -> list[dict]:
    """The history rows of a .wandb file: records in LevelDB's log format, each one a protocol buffer."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record, rows = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = Record.FromString(record)
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            record = b""
    return rows


def test_wandb_gets_the_configuration_as_plain_values(tmp_path, monkeypatch):
    given = {}

    class Run(Recorder):
        def __init__(self, run_directory, **arguments):
            super().__init__()
            given.update(arguments)

    import llama_train.observe.weights_and_biases as module

    monkeypatch.setattr(module, "WeightsAndBiasesView", Run)
    Observers(_config(wandb=True), tmp_path, logger_ids={"wandb": "abc"})
    assert given["run_id"] == "abc"
    assert given["config"]["logging"]["console"] == "lines"
    assert json.loads(json.dumps(given["config"]))["steps"] == 10
