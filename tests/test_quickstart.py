import importlib.util
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llama_foundation.compose import compose
from llama_train.config import TrainConfig

ROOT = Path(__file__).parents[1]
specification = importlib.util.spec_from_file_location("quickstart", ROOT / "examples" / "quickstart.py")
quickstart = importlib.util.module_from_spec(specification)
sys.modules["quickstart"] = quickstart
specification.loader.exec_module(quickstart)

SUMMARY = {"loss_first": 8.3, "loss_last": 4.2, "validation_loss": 4.5, "tokens_per_second": 6000.0, "seconds": 200.0}


def finished(run: Path, **changes: float) -> Path:
    """A run directory as the commands leave it."""
    for name in ("shards/shards.json", "shards/report.html", "huggingface/config.json", "metrics.jsonl", "report.html"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    for step in ("step-00000140", "step-00000280"):
        (run / "checkpoints" / step).mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return run


def overrides(command: list[str]) -> list[str]:
    return [part for part in command if "=" in part and not part.startswith("-")]


def test_the_training_commands_compose_and_stop_half_way() -> None:
    plan = {step.name: step for step in quickstart.steps(Path("runs/quickstart"), 2)}
    first = compose("train", TrainConfig, overrides(plan["2-train"].command))
    second = compose("train", TrainConfig, overrides(plan["3-resume"].command))
    assert (first.output, first.name, first.data.shards) == ("runs", "quickstart", "runs/quickstart/shards")
    assert (first.stop_at_step, second.stop_at_step) == (second.steps // 2, None)
    first.stop_at_step = None
    assert first == second


def test_the_training_takes_four_minutes_at_the_measured_speed() -> None:
    config = compose("train", TrainConfig, ["experiment=quickstart", "data.shards=x"])
    tokens = config.steps * config.data.batch_size * config.data.sequence_length
    assert 180 < tokens / 6000 < 240  # tokens/s of the 3M model in two processes on two cores
    assert config.validation.batches > 0


def test_a_command_is_shown_as_one_types_it() -> None:
    plan = quickstart.steps(Path("runs/quickstart"), 2)
    lines = [quickstart.shown(step.command) for step in plan]
    assert lines[0].startswith("python -m data_pipeline pipeline=quickstart")
    assert lines[1].startswith("torchrun --standalone --nproc-per-node=2 -m llama_train experiment=quickstart")
    assert [shlex.split(line)[1:] for line in lines] == [step.command[1:] for step in plan]


def test_output_is_shown_and_logged(tmp_path: Path, capfd) -> None:
    step = quickstart.Step("0-say", "Say it", [sys.executable, "-c", "import os; print(os.environ['WORD'])"])
    quickstart.execute(step, tmp_path / "logs" / "0-say.log", {"WORD": "größer", "PYTHONUTF8": "1"})
    assert (tmp_path / "logs" / "0-say.log").read_text(encoding="utf-8") == "größer\n"
    assert capfd.readouterr().out == "größer\n"


def test_in_a_terminal_the_command_has_one_too_and_is_logged(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import test_quickstart as t\n"
        "say = 'import sys, os; print(sys.stdout.isatty(), os.environ[\"WORD\"]); sys.exit(3)'\n"
        "step = t.quickstart.Step('0-say', 'Say it', [sys.executable, '-c', say])\n"
        "t.quickstart._run_in_terminal(step, open(sys.argv[1], 'wb'), {'WORD': 'yes'}) == 3 or sys.exit('status lost')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "log").read_text().split() == ["True", "yes"]


def test_a_failing_command_is_named_with_its_status_and_log(tmp_path: Path) -> None:
    step = quickstart.Step("2-train", "Train", [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    with pytest.raises(quickstart.StepError) as error:
        quickstart.execute(step, tmp_path / "2-train.log", {})
    assert "'Train' failed with exit status 3" in str(error.value)
    assert "python -c" in str(error.value)
    assert str(tmp_path / "2-train.log") in str(error.value)
    assert (tmp_path / "2-train.log").read_text() == "why\n"


def test_the_summary_keeps_the_trainers_numbers_and_adds_where_things_are(tmp_path: Path) -> None:
    run = finished(tmp_path)
    summary = quickstart.summarise(run, 301.26, 2)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert {key: summary[key] for key in SUMMARY} == SUMMARY
    assert summary["checkpoint"] == str(run / "checkpoints" / "step-00000280")
    assert (summary["quickstart_seconds"], summary["processes"]) == (301.3, 2)
    for key in ("shards", "huggingface", "metrics", "report", "data_report"):
        assert Path(summary[key]).exists()
    text = io.StringIO()
    Console(file=text, width=200).print(quickstart.table(summary))
    for expected in ("8.300", "4.200", "4.500", "6,000 tokens/s", "5 min 1 s", str(run / "report.html")):
        assert expected in text.getvalue()


@pytest.mark.parametrize("name", ["shards/shards.json", "huggingface/config.json", "metrics.jsonl", "report.html"])
def test_a_missing_result_is_named(tmp_path: Path, name: str) -> None:
    (finished(tmp_path) / name).unlink()
    with pytest.raises(quickstart.StepError, match=name):
        quickstart.summarise(tmp_path, 1.0, 2)


def test_a_loss_that_does_not_fall_fails_the_quickstart(tmp_path: Path) -> None:
    with pytest.raises(quickstart.StepError, match="did not fall"):
        quickstart.summarise(finished(tmp_path, loss_last=8.3), 1.0, 2)


def test_two_quickstarts_do_not_work_in_the_same_directory(tmp_path: Path) -> None:
    with (
        quickstart.alone(tmp_path / "lock"),
        pytest.raises(quickstart.StepError, match="another quickstart"),
        quickstart.alone(tmp_path / "lock"),
    ):
        pass
