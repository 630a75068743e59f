"""Sweeps: what is swept, what the comparison says of runs whose losses are known."""

import json
import math
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch import __main__ as launcher
from launch import compare, jobs, sweep
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError
from llama_train import __main__ as llama_train
from llama_train.config import TrainConfig
from llama_train.config.slurm import SlurmConfig
from llama_train.observe.summary import objective

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
    if name.startswith("learning_rate"):
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
    with pytest.raises(ConfigError, match=r"a: an interval.*hydra/sweeper=optuna"):
        sweep.first_job(["a=interval(1,2)"])
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
    (runs[1] / "summary.json").write_text('{"finished": false}')
    best = compare.compare(runs, tmp_path / "page.html", "s")
    assert [each.settings["optimizer.learning_rate"] for each in best] == [0.1, 0.4, 0.2]


def test_run_that_is_not_finished_or_has_not_begun_is_shown_as_such(tmp_path, capsys) -> None:
    runs = [a_run(tmp_path, 0.1, 2.0, 2.0), a_run(tmp_path, 0.2, 1.0, 1.0, steps=7), a_run(tmp_path, 0.4, 1.0, 1.0)]
    (runs[2] / "metrics.jsonl").unlink()
    (runs[2] / "summary.json").unlink()
    outcomes = compare.compare(runs, tmp_path / "page.html", "s")
    shown = capsys.readouterr().out
    assert "at step 7" in shown and "not begun" in shown
    assert [each.finished for each in outcomes] == [True, False, False]


def test_job_that_failed_does_not_hide_the_others(tmp_path, monkeypatch, capsys) -> None:
    a_run(tmp_path, 0.1, 2.0, 3.0)
    a_run(tmp_path, 0.2, 2.0, 2.5, steps=3)
    monkeypatch.setattr(sweep, "run_to_end", lambda command: 3)
    settings = ["experiment=quickstart", "data.shards=x", "name=s", f"output={tmp_path}", "cluster.device=cpu"]
    assert sweep.sweep([*settings, "optimizer.learning_rate=0.1,0.2"]) == 3
    said = capsys.readouterr()
    assert "finished" in said.out and "at step 3" in said.out and (tmp_path / "s-comparison.html").is_file()
    assert said.err == "the sweep ended with status 3, 1 of 2 runs are not finished\n"


def settings_of(command: list[str]) -> dict[str, str]:
    """The overrides of a job's command line."""
    overrides = command[command.index("llama_train") + 1 :]
    return {key.lstrip("+"): value.strip('"') for key, _, value in (each.partition("=") for each in overrides)}


def test_search_minimises_the_runs_loss_and_its_command_resumes_it(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    rates: dict[str, list[float]] = {}

    def run(command: list[str]) -> int:
        """Be llama-train: the best learning rate is 3e-3; the third job fails."""
        job = settings_of(command)
        rate = float(job["optimizer.learning_rate"])
        directory = Path(job["output"]) / job["name"]
        directory.mkdir(parents=True, exist_ok=True)
        loss = 2 + math.log(rate / 3e-3) ** 2
        (directory / "summary.json").write_text(json.dumps({"finished": True, "steps": 9, "validation_loss": loss}))
        rates.setdefault(job["name"], []).append(rate)
        return 3 if list(rates).index(job["name"]) == 2 else 0

    monkeypatch.setattr(jobs, "run_to_end", run)
    ready = [each for each in sweep.ready_made("learning_rate_search") if "n_trials" not in each]
    overrides = [*ready, "hydra.sweeper.n_trials=4", "data.shards=x", "steps=9", f"output={tmp_path}", "name=s"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["jobs", "1", "--multirun", *overrides, f"hydra.sweep.dir={tmp_path}/files"])
        assert jobs.main() == 3
    assert [len(each) for each in rates.values()] == [2, 2, 2, 2]
    tried = [each[0] for each in rates.values()]
    assert all(1e-4 <= rate <= 3e-2 for rate in tried)
    found = OmegaConf.load(tmp_path / "files" / "optimization_results.yaml")
    del tried[2]
    assert found.best_value == pytest.approx(min(2 + math.log(rate / 3e-3) ** 2 for rate in tried))
    monkeypatch.setattr(jobs, "run_to_end", lambda command: 3)
    one = [argument.replace("n_trials=4", "n_trials=1") for argument in sys.argv]
    monkeypatch.setattr(sys, "argv", ["jobs", "1", *one[1:]])
    assert jobs.main() == 3
    assert capsys.readouterr().err.endswith("error: no job of the search has a result; each has said why\n")


@pytest.mark.parametrize(("status", "steps"), [(0, 4), (143, 0)])
def test_a_signal_ends_the_sweep_and_not_one_of_its_jobs(tmp_path, monkeypatch, status, steps) -> None:
    started = []

    def run(command: list[str]) -> int:
        started.append(command)
        directory = tmp_path / settings_of(command)["name"]
        directory.mkdir()
        (directory / "summary.json").write_text(json.dumps({"finished": False, "steps": steps}))
        return status

    monkeypatch.setattr(jobs, "run_to_end", run)
    settings = ["data.shards=x", "steps=9", f"output={tmp_path}", f"hydra.sweep.dir={tmp_path}/files", "cluster=cpu"]
    monkeypatch.setattr(sys, "argv", ["jobs", "2", "--multirun", *settings, "optimizer.learning_rate=0.1,0.2"])
    assert jobs.main() == 130
    [command] = started
    assert command[1:4] == ["-m", "launch.torchrun", "--processes=2"]


def test_multirun_under_a_launcher_of_several_processes_is_refused_for_all_of_them(monkeypatch, capsys) -> None:
    told = {}

    class Store:
        def set(self, key: str, value: str) -> None:
            told[key] = json.loads(value)

    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(llama_train, "_meet", Store)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["llama-train", "--multirun", "steps=1,2"])
    assert llama_train.main() == 2
    assert told == {"verdict": {"status": 2}}
    assert "llama-launch sweep processes_per_node=2" in capsys.readouterr().err


def test_objective_is_the_validation_loss_else_that_of_the_last_tenth_and_nothing_of_an_unfinished_run(
    tmp_path,
) -> None:
    assert objective(tmp_path) is None
    run = a_run(tmp_path, 0.1, 2.0, 3.0)
    summary = {"finished": True, "steps": 20, "validation_loss": 3.0}
    for changes, expected in (
        ({}, 3.0),
        ({"validation_loss": None}, 2.5),
        ({"validation_loss": math.inf}, None),
        ({"finished": False}, None),
    ):
        records = [record(step, 9.0 if step < 19 else 2.0 + step % 2) for step in range(1, 21)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        (run / "summary.json").write_text(json.dumps(summary | changes))
        assert objective(run) == expected


@pytest.mark.parametrize("word", ["sweep", "hosts"])
def test_a_secret_on_the_command_line_is_refused_before_anything_is_written(
    word, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret-0123456789")
    settings = ["experiment=quickstart", "data.shards=x", f"output={tmp_path}", "processes_per_node=1"]
    more = ["optimizer.learning_rate=1,2"] if word == "sweep" else ["hosts=[a,b]"]
    monkeypatch.setattr(
        sys, "argv", ["llama-launch", word, *settings, *more, "logging.wandb_project=planted-secret-0123456789"]
    )
    assert launcher.main() == 2
    said = capsys.readouterr()
    assert "logging.wandb_project: its value is a secret" in said.err and "planted" not in said.err + said.out
    assert list(tmp_path.iterdir()) == []
