"""What lies in a run directory and what people write by hand: locks, attempts, calibrations, prompts, tasks."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launch import runs
from launch.attempts import ATTEMPTS, begin, end, read_attempts, verdict, without_progress
from launch.compare import changed as changed_settings
from launch.compare import read_outcome
from llama_foundation import compose
from llama_foundation.errors import ConfigError, DataError, RunError, UserError
from llama_train.config import TrainConfig
from llama_train.engine.deepspeed.config_file import read_config_file
from llama_train.evaluate.task_files import _read_examples as read_examples
from llama_train.generate import read_prompts
from llama_train.plan.calibrate import _benchmark as read_benchmark
from llama_train.plan.hardware import ACCELERATORS, Hardware, read_accelerator
from llama_train.survive.lock import RunLock
from tests.faults.fuzzing import FEW, bounded_memory, changed, changed_bytes, refusal

__all__ = ["bounded_memory"]

pytestmark = pytest.mark.usefixtures("bounded_memory")


def write(path: Path, value: object, data: st.DataObject) -> None:
    """Write `value` as JSON, changed in one way or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed(value))))
    else:
        path.write_bytes(data.draw(changed_bytes(json.dumps(value).encode())))


@FEW
@given(data=st.data())
def test_a_lock_and_the_list_of_attempts(tmp_path: Path, data: st.DataObject) -> None:
    write(tmp_path / "run.lock", {"host": "h", "pid": 3, "started": "now"}, data)
    with RunLock(tmp_path):
        if data.draw(st.booleans()):
            write(tmp_path / "run.lock", {"host": "h", "pid": 3, "started": "now"}, data)
        error = refusal(RunError, lambda: RunLock(tmp_path).__enter__())
        assert error is not None and str(tmp_path) in error
    attempts = [{"job": "7", "nodes": "n1", "began_after": 0, "status": None}] * 3
    write(tmp_path / "summary.json", {"finished": True}, data)
    for act in (
        lambda: without_progress(read_attempts(tmp_path), "7", 0),
        lambda: begin(tmp_path, "7", "n1", 9),
        lambda: verdict(tmp_path, "7", 0, 9),
        lambda: verdict(tmp_path, "7", 1, 9),
        lambda: end(tmp_path, "7", 2, 9, False),
    ):
        write(tmp_path / ATTEMPTS, attempts, data)
        error = refusal(RunError, act)
        assert error is None or str(tmp_path) in error


@FEW
@given(data=st.data())
def test_what_status_and_compare_read(tmp_path: Path, data: st.DataObject, monkeypatch_module: None) -> None:
    write(tmp_path / runs.JOBS, ["7", "8"], data)
    write(tmp_path / ATTEMPTS, [{"job": "7", "nodes": "n1", "began_after": 0, "status": 3, "ended_after": 5}], data)
    write(tmp_path / "metrics.jsonl", {"step": 3, "loss": 2.5, "tokens_per_second": 100.0}, data)
    error = refusal(UserError, lambda: runs.status(runs.RunsConfig(run=str(tmp_path))))
    assert error is None or str(tmp_path) in error
    (tmp_path / "metrics.jsonl").unlink()
    write(tmp_path / "summary.json", {"finished": True}, data)
    write(tmp_path / "config.yaml", {"model": {"name": "tiny"}, "steps": 3}, data)  # JSON is YAML
    error = refusal(UserError, lambda: changed_settings([read_outcome(tmp_path)] * 2))
    assert error is None or str(tmp_path) in error


@pytest.fixture
def monkeypatch_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM knows every job."""
    monkeypatch.setattr(runs, "job_rows", lambda jobs: [runs.Row(job, "FAILED", "1:0", "1", "1", "n1") for job in jobs])


@pytest.fixture(scope="module")
def hardware() -> Hardware:
    return Hardware(read_accelerator("h100_80gb"), 8, 50e9)


@FEW
@given(data=st.data())
def test_figures_that_the_planner_reads(tmp_path: Path, hardware: Hardware, data: st.DataObject) -> None:
    row = {"name": "a", "library": "native", "documents": False, "sequence_length": 128, "micro_batch_size": 1}
    row |= {"settings": []}
    result = {"status": "measured", "tokens_per_second": 100.0}
    write(tmp_path / "gpu.json", {"rows": [row], "results": {"a": result}}, data)
    error = refusal(ConfigError, lambda: read_benchmark(tmp_path / "gpu.json", hardware))
    assert error is None or "gpu.json" in error
    figures = (ACCELERATORS / "h100_80gb.yaml").read_bytes()
    if data.draw(st.booleans()):
        write(tmp_path / "mine.yaml", yaml.safe_load(figures), data)
    else:
        (tmp_path / "mine.yaml").write_bytes(data.draw(changed_bytes(figures)))
    error = refusal(ConfigError, lambda: read_accelerator("mine", tmp_path))
    assert error is None or "mine.yaml" in error


TASK = {"query": "a", "choices": ["b", "c"], "gold": 1, "aliases": ["d"]}


@FEW
@given(data=st.data())
def test_prompts_tasks_and_deepspeeds_settings(tmp_path: Path, deepspeed: TrainConfig, data: st.DataObject) -> None:
    path = tmp_path / "prompts.jsonl"
    write(path, {"prompt": "a"}, data)
    error = refusal(DataError, lambda: read_prompts(path))
    assert error is None or str(path) in error
    path = tmp_path / "task.jsonl"
    write(path, TASK, data)
    if data.draw(st.booleans()):
        path = tmp_path / "task.jsonl.gz"
        path.write_bytes(data.draw(changed_bytes(gzip.compress(json.dumps(TASK).encode(), mtime=0))))
    error = refusal(DataError, lambda: read_examples(path, 0))
    assert error is None or str(path) in error
    settings = {"bf16": {"enabled": "auto"}, "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}}
    settings |= {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}, "steps_per_print": 10}
    write(tmp_path / "ds.json", settings, data)
    deepspeed.engine.config_file = str(tmp_path / "ds.json")
    error = refusal(ConfigError, lambda: read_config_file(deepspeed, {"gradient_accumulation_steps": 1}))
    assert error is None or str(tmp_path) in error


@pytest.fixture(scope="module")
def deepspeed() -> TrainConfig:
    chosen = ["model=tiny", "engine=deepspeed", "steps=1", "data.shards=x", "optimizer.learning_rate=1e-3"]
    chosen.append("data.sequence_length=32")
    return compose.compose("train", TrainConfig, chosen)


def test_what_is_not_changed_is_read(tmp_path: Path, hardware: Hardware, deepspeed: TrainConfig) -> None:
    shutil.copy(ACCELERATORS / "h100_80gb.yaml", tmp_path / "mine.yaml")
    assert read_accelerator("mine", tmp_path).bf16_tflops > 100
    (tmp_path / "task.jsonl").write_text(json.dumps(TASK))
    assert len(read_examples(tmp_path / "task.jsonl", 0)[1]) == 1
    OmegaConf.save(OmegaConf.create({"model": {"name": "tiny"}}), tmp_path / "config.yaml")
    assert read_outcome(tmp_path).settings == {"model.name": "tiny"}
