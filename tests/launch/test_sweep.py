"""Sweeps: what is swept, what the comparison says of runs whose losses are known."""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch import compare, sweep
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.config.slurm import SlurmConfig

READY = sorted(path.stem for path in sweep.SWEEPS.glob("*.yaml"))


def record(step: int, loss: float) -> dict:
    """A line of metrics.jsonl."""
    numbers = dict.fromkeys(("lr", "grad_norm", "seconds", "tokens_per_second", "tokens_per_second_per_device"), 1.0)
    numbers |= dict.fromkeys(("data_seconds", "compute_seconds", "checkpoint_seconds"), 0.1)
    return {
        "kind": "step",
        "step": step,
        "attempt": 1,
        "tokens": 8 * step,
        "batch_tokens": 8,
        "loss": loss,
        "memory_bytes": 1,
    } | numbers


def a_run(directory: Path, rate: float, loss: float, validation: float, steps: int = 20) -> Path:
    run = directory / f"s-optimizer.learning_rate={rate}"
    run.mkdir()
    settings = {"name": run.name, "steps": 20, "optimizer": {"learning_rate": rate, "betas": [0.9, 0.95]}}
    OmegaConf.save(OmegaConf.create(settings), run / "config.yaml")
    records = [record(step, loss) for step in range(1, steps + 1)]
    known = validation if math.isfinite(validation) else None  # as metrics.py writes it
    records[19:] = [each | {"validation_loss": known} for each in records[19:]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (run / "summary.json").write_text(json.dumps({"finished": steps == 20}))
    return run


@pytest.mark.parametrize("name", READY)
def test_ready_made_sweep_composes_in_each_of_its_jobs(name: str) -> None:
    overrides = [*sweep.ready_made(name), "data.shards=x"]
    if name == "learning_rate":
        overrides.append("experiment=quickstart")
    assert compose("train", TrainConfig, sweep.first_job(overrides)).data.shards == "x"


def test_context_sweep_has_the_same_tokens_in_every_step() -> None:
    ready = [each for each in sweep.ready_made("llama2_context") if not each.startswith("data=")]
    data = [compose("train", TrainConfig, [*ready, f"data=context_{k}k", "data.shards=x"]).data for k in (2, 4)]
    assert [each.sequence_length for each in data] == [2048, 4096]
    assert len({each.sequence_length * each.batch_size for each in data}) == 1


def test_a_list_in_brackets_is_one_value_and_does_not_sweep() -> None:
    with pytest.raises(ConfigError, match="nothing is swept"):
        sweep.first_job(["a=[1,2]", "b='x,y'"])
    assert sweep.first_job(["a=[1,2],[3]", "b='x,y'", "c=1,2"]) == ["a=[1,2]", "b='x,y'", "c=1"]


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:30", 90), ("2:30:00", 150), ("1-2", 1560), ("1-02:30", 1590), ("1-0:5:0", 1445)],
)
def test_time_limits_are_read_as_sbatch_reads_them(time: str, minutes: int) -> None:
    assert sweep.minutes(time) == minutes


def test_jobs_of_a_sweep_are_one_process_with_its_share_of_a_node() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    given = sweep.submitit(SlurmConfig(partition="gpu", gpus_per_node=4, cpus_per_node=32, time="60"), 8)
    assert "hydra.launcher.gpus_per_node=1" in given and "hydra.launcher.cpus_per_task=8" in given
    assert "hydra.launcher.timeout_min=60" in given and "hydra.launcher.partition=gpu" in given


def test_comparison_ranks_by_validation_loss_and_shows_what_changed(tmp_path, capsys) -> None:
    runs = [a_run(tmp_path, *each) for each in ((0.1, 2.0, 3.0), (0.2, 3.0, 2.5), (0.4, 4.0, float("nan")))]
    best = compare.compare(runs, tmp_path / "page.html", "s")
    assert [each.settings["optimizer.learning_rate"] for each in best] == [0.2, 0.1, 0.4]
    assert compare.changed(best) == ["optimizer.learning_rate"]
    page = (tmp_path / "page.html").read_text()
    assert "learning_rate = 0.2" in page and page.count("<svg") >= 1
    assert "best first by validation loss" in capsys.readouterr().out


def test_run_that_is_not_finished_or_has_not_begun_is_shown_as_such(tmp_path, capsys) -> None:
    runs = [a_run(tmp_path, 0.1, 2.0, 2.0), a_run(tmp_path, 0.2, 1.0, 1.0, steps=7), a_run(tmp_path, 0.4, 1.0, 1.0)]
    (runs[2] / "metrics.jsonl").unlink()
    (runs[2] / "summary.json").unlink()
    outcomes = compare.compare(runs, tmp_path / "page.html", "s")
    shown = capsys.readouterr().out
    assert "at step 7" in shown and "not begun" in shown
    assert [each.finished for each in outcomes] == [True, False, False]
