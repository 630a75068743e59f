"""The command as a user runs it: pages, files, refusals."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_pipeline.shards.reader import open_root
from llama_foundation.compose import CONFIGS, compose, dump
from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.observe.metrics import MetricsFile
from llama_train.parallel.resolve import resolve_layout
from llama_train.plan.__main__ import main
from llama_train.plan.hardware import read_accelerator
from llama_train.plan.recipe import rate, sources, stages, steps_of_budget
from llama_train.plan.settings import PlanConfig
from tests.llama_train.observe.made_up_steps import step_record

SMALL = ["experiment=llama2_7b", "cluster=a100x8", "nodes=4"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llama-plan", *arguments])
    return main()


def test_the_page_has_memory_time_layouts_and_the_whole_run(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "experiment=llama2_70b", "cluster=a100x8", "nodes=256") == 0
    page = capsys.readouterr().out
    for expected in (
        "68,976,648,192 parameters",
        "2,048 × a100_80gb",
        "Memory of the fullest device",
        "tokens/s/GPU",
        "palm_full_attention",
        "causal_attention",
        "The 10 fastest",
        "2,000.0 B tokens",
        "tCO2e",
        "checkpoint 827.7 GB",
    ):
        assert expected in page, expected


@pytest.mark.parametrize(
    ("experiment", "cluster", "nodes"),
    [
        ("llama1_65b", "a100x8", 256),
        ("codellama_34b", "a100x8", 64),
        ("llama3_70b", "h100x8", 256),
        ("llama3_8b", "h200x8", 1),
        ("llama3.1_405b", "h100x8", 1024),
    ],
)
def test_every_generation_of_recipes_has_a_page_in_seconds(monkeypatch, capsys, experiment, cluster, nodes) -> None:
    began = time.process_time()
    assert run(monkeypatch, f"experiment={experiment}", f"cluster={cluster}", f"nodes={nodes}") == 0
    assert time.process_time() - began < 5
    page = capsys.readouterr().out
    assert "the fastest that fits" in page and "days" in page


def test_exact_builds_the_fullest_rank_and_agrees(monkeypatch, capsys) -> None:
    small = ["experiment=llama2_7b", "model.layers=2", "cluster=a100x8", "layout.data_shard=8", "plan.search=false"]
    assert run(monkeypatch, *small, "plan.exact=true") == 0
    line = re.search(r"optimizer ([\d,]+) bytes \(formula ([\d,]+)\); peak", capsys.readouterr().out)
    assert line and line[1] == line[2]


def test_a_written_layout_is_one_that_training_takes(monkeypatch, capsys, tmp_path) -> None:
    file = tmp_path / "planned.yaml"
    assert run(monkeypatch, *SMALL, f"plan.write={file}", f"plan.json={tmp_path / 'plan.json'}") == 0
    written = yaml.safe_load(file.read_text())
    overrides = [f"layout.{name}={str(value).replace(' ', '')}" for name, value in written.items()]
    config = compose("train", TrainConfig, ["experiment=llama2_7b", "data.shards=x", *overrides])
    assert resolve_layout(config, 32).world_size == 32
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["layouts"][0]["layout"] == written
    assert sum(figures["chosen"]["memory"].values()) < 80 * 2**30
    assert run(monkeypatch, *SMALL, f"plan.write={file}") == 2
    assert "exists; remove it" in capsys.readouterr().err


def test_a_layout_that_does_not_fit_says_why_and_what_does(monkeypatch, capsys) -> None:
    status = run(
        monkeypatch, "experiment=llama2_70b", "cluster=a100x8", "nodes=8", "layout.data_shard=64", "plan.top=1"
    )
    page = capsys.readouterr().out
    assert status == 1
    assert "does not fit: " in page and "engine.activation_checkpointing=full" in page


REFUSED = {
    "cluster.accelerator=h1000": "cluster.accelerator=h1000 is not known; did you mean",
    "cluster.accelerator=null": "has no cluster.accelerator",
    "nodes=0": "nodes=0 must be at least 1",
    "cluster.devices_per_node=0": "cluster.devices_per_node=0 must be at least 1",
    "cluster.network_gb_per_second=0": "cluster.network_gb_per_second=0.0 must be between",
    "layout.tensor=3": "layout: pipeline=1",
    "layout.data_shard=64": "does not give the 32 processes",
    "nodes=4096": "no layout divides batches of 1,024 sequences over 32768 devices",
    "data.batch_size=1": "no layout divides batches of 1 sequences",
    "data.shards=/nowhere": "/nowhere",
    "plan.tokens=1e6": "plan.tokens=1e+06 is less than one batch of 4,194,304 tokens",
    "plan.calibrate=/nowhere": "neither a run directory",
    "engine=deepspeed": "engine.compile=true with engine.zero_stage=3",
    "plan.picture=plan.jpg": "must end in .png or .svg",
    "plan.margin=2": "plan.margin=2.0 must be between 0 and 0.5",
    "plan.write=/nowhere/x.yaml": "there is no directory",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_bad_input_is_refused_by_name(monkeypatch, capsys, setting: str) -> None:
    assert run(monkeypatch, *SMALL, setting) == 2
    assert REFUSED[setting] in capsys.readouterr().err


def test_a_model_that_fits_nowhere_names_the_nearest(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "experiment=llama2_70b", "cluster=a100x8", "nodes=1") == 2
    assert "no layout of llama2_70b fits into 8 × 79 GiB" in capsys.readouterr().err


def test_an_accelerator_of_ones_own_is_read_and_its_mistakes_are_named(tmp_path) -> None:
    figures = yaml.safe_load((CONFIGS / "accelerator" / "h200.yaml").read_text())
    (tmp_path / "b300.yaml").write_text(yaml.safe_dump(figures | {"memory_gib": 280}))
    assert read_accelerator("b300", tmp_path).memory_gib == 280
    (tmp_path / "b300.yaml").write_text(yaml.safe_dump(figures | {"watts": "many"}))
    with pytest.raises(ConfigError, match="watts=many must be a number above 0"):
        read_accelerator("b300", tmp_path)


def test_stages_of_the_405b_are_the_papers() -> None:
    config = compose("plan", PlanConfig, ["experiment=llama3.1_405b"])
    found = stages(config)
    assert [stage.batch_tokens for stage in found] == [2**22, 2**23, 2**24]
    # Section 3.4.1: 252M tokens, then 2.87T; section 1: 15.6T.
    assert found[0].tokens == pytest.approx(252e6, rel=0.01)
    assert found[0].tokens + found[1].tokens == pytest.approx(2.87e12, rel=0.001)
    assert sum(stage.tokens for stage in found) == pytest.approx(15.6e12, rel=0.001)
    assert rate(config, 7999) == pytest.approx(8e-5)


def test_a_budget_of_tokens_becomes_steps_through_the_stages() -> None:
    config = compose("plan", PlanConfig, ["experiment=llama3.1_405b"])
    # Section 3.4.1 of "The Llama 3 Herd of Models": 60 steps of 2^22, 342,101 of 2^23, then 2^24 tokens.
    assert steps_of_budget(config, 60 * 2**22 + 10 * 2**23) == 70
    assert steps_of_budget(config, 15.6e12) == pytest.approx(config.steps, abs=1)
    simple = compose("plan", PlanConfig, ["experiment=llama2_70b"])
    assert steps_of_budget(simple, 2e12) == simple.steps


def test_a_measured_run_corrects_the_times(monkeypatch, capsys, tmp_path) -> None:
    overrides = ["experiment=llama2_7b", "data.shards=x", "layout.data_shard=32", "engine.precision=bf16"]
    (tmp_path / "config.yaml").write_text(dump(compose("train", TrainConfig, overrides)))
    with MetricsFile(tmp_path / "metrics.jsonl") as writer:
        for step in range(1, 8):
            writer.append(step_record(step, tokens_per_second=64000.0, tokens_per_second_per_device=2000.0))
    assert run(monkeypatch, *SMALL, f"plan.calibrate={tmp_path}", "plan.search=false", "layout.data_shard=32") == 0
    page = capsys.readouterr().out
    assert "measured 2,000 tokens/s/GPU" in page


def test_a_benchmark_of_one_gpu_corrects_the_times_too(monkeypatch, capsys, tmp_path) -> None:
    row = {"name": "full", "settings": [], "library": "native", "sequence_length": 4096, "micro_batch_size": 1}
    result = {"status": "measured", "tokens_per_second": 9000.0}
    file = tmp_path / "gpu-results.json"
    file.write_text(json.dumps({"rows": [row | {"documents": False}], "results": {"full": result, "ceilings": {}}}))
    assert run(monkeypatch, *SMALL, f"plan.calibrate={file}", "plan.search=false", "layout.data_shard=32") == 0
    assert "measured 9,000 tokens/s/GPU" in capsys.readouterr().out
    file.write_text("{}")
    assert run(monkeypatch, *SMALL, f"plan.calibrate={file}") == 2
    assert "is no result of benchmarks/gpu.py" in capsys.readouterr().err


def test_epochs_are_against_the_shards_real_counts(tiny_shards) -> None:
    root = open_root(tiny_shards)
    counts = {name: root.open("train", name).manifest.tokens for name in root.sources("train")}
    first, second = sorted(counts)
    base = ["experiment=llama2_7b", f"data.shards={tiny_shards}", "steps=10", "schedule.warmup_steps=0"]
    config = compose("plan", PlanConfig, [*base, f"data.sources={{{first}: 3, {second}: 1}}"])
    used = {use.name: use for use in sources(config)}
    tokens = 10 * 1024 * 4096
    assert used[first].epochs == pytest.approx(tokens * 0.75 / counts[first])
    assert used[second].epochs == pytest.approx(tokens * 0.25 / counts[second])
    even = sources(compose("plan", PlanConfig, base))
    assert even[0].epochs == pytest.approx(even[1].epochs), "in proportion to their tokens"
    with pytest.raises(ConfigError, match=r"data\.sources\.books is not a source"):
        sources(compose("plan", PlanConfig, [*base, "data.sources={books: 1}"]))


def test_the_picture_is_drawn(monkeypatch, tmp_path) -> None:
    file = tmp_path / "plan.svg"
    assert run(monkeypatch, *SMALL, "plan.search=false", "layout.data_shard=32", f"plan.picture={file}") == 0
    assert "<svg" in file.read_text()


def test_the_planner_needs_no_torch() -> None:
    code = "import sys, llama_train.plan.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_faults_leave_what_the_formula_says_and_the_best_interval_is_the_best(monkeypatch, capsys, tmp_path) -> None:
    path = tmp_path / "plan.json"
    rate_of_faults = 1e-3
    arguments = [*SMALL, "layout.data_shard=32", "plan.search=false", f"plan.faults_per_device_hour={rate_of_faults}"]
    assert run(monkeypatch, *arguments, "checkpoint.every=100", f"plan.json={path}") == 0
    page = capsys.readouterr().out
    days = float(re.search(r"B tokens, ([\d,.]+) days", page)[1].replace(",", ""))
    steps = json.loads(path.read_text())["stages"]
    step = days * 86400 / sum(stage["steps"] for stage in steps)
    between = 3600 / (rate_of_faults * 32)
    assert f"a fault every {between / 3600:,.2f} hours" in page

    def brute(every: int, faults: int = 20_000) -> float:
        dice = random.Random(0)
        useful = wall = 0.0
        for _ in range(faults):
            until = dice.expovariate(1 / between)
            cycles = until // (every * step + 5)
            useful += cycles * every * step
            wall += until
            while (again := dice.expovariate(1 / between)) < 300:
                wall += again
            wall += 300
        return useful / wall

    told = {int(every): float(share) / 100 for every, share in re.findall(r"every=(\d+).*goodput ([\d.]+)%", page)}
    best = next(every for every in told if every != 100)
    assert told[100] == pytest.approx(brute(100), abs=0.005)
    assert told[best] == pytest.approx(brute(best), abs=0.005)
    assert told[best] >= told[100]
    assert brute(best) > max(brute(best * 2), brute(best // 2))
