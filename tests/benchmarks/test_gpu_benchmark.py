"""benchmarks/gpu.py runs from end to end without a GPU, and one bad section does not stop the others."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def run(
    tmp_path: Path, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Run the program here; return its status, what it printed, and its results."""

    def main(*arguments: str) -> tuple[int, str, dict[str, Any]]:
        output = tmp_path / "results.json"
        usual = ["--device", "cpu", "--small", "--steps", "2", "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *usual, *arguments])
        monkeypatch.setattr(os, "environ", dict(os.environ))
        status = benchmark.main()
        return status, capsys.readouterr().out, json.loads(output.read_text())["results"]

    return main


def test_every_section_runs_and_the_table_has_every_row(run: Callable, benchmark: ModuleType) -> None:
    status, printed, results = run("--only", "machine", "ceilings", "compile", "documents", "eager", "profile")
    wanted = {row.name for row in benchmark.ROWS} | {"machine", "ceilings", "profile"}
    assert results.keys() == wanted
    assert status == 0, printed
    measured = [name for name, result in results.items() if result["status"] == "measured"]
    assert {"machine", "ceilings", "profile", "full recomputation, compile", "full recomputation, eager"} <= set(
        measured
    )
    assert any(name.startswith("transformers") for name in measured)
    assert all(result["status"] in ("measured", "refused") for result in results.values())
    for row in benchmark.ROWS:
        assert sum(line.startswith(row.name.ljust(56)) for line in printed.splitlines()) == 1, row.name
        result = results[row.name]
        if result["status"] == "measured":
            assert result["tokens_per_second"] == pytest.approx(
                64 * row.micro_batch_size / (result["milliseconds"] / 1000)
            )
            assert abs(result["first_loss"] - 6.24) < 0.3, "ln 512: random weights guess"
    profile = results["profile"]
    assert sum(profile["by_kind"].values()) == pytest.approx(profile["seconds"], rel=0.2)
    assert Path(profile["trace"]).exists()
    assert "times the speed of transformers" in printed
    assert "of the measured ceiling" in printed


def test_sections_in_processes_of_their_own_give_numbers_too(
    run: Callable, benchmark: ModuleType, tmp_path: Path
) -> None:
    name = "full recomputation, eager"
    status, _, results = run("--apart", "--only", name, "--layers", "1")
    assert (status, results[name]["status"]) == (0, "measured"), results
    options = benchmark.Options("cpu", True, None, 1, tmp_path / "x.json")
    assert benchmark.run_apart("machine", options, 0.01) == {"status": "failed", "why": "was not done after 0 s"}


def test_a_failing_section_is_reported_and_the_rest_goes_on(
    run: Callable, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options: object) -> dict:
        raise MemoryError("out of memory")

    monkeypatch.setitem(benchmark.SECTIONS, "machine", broken)
    status, printed, results = run("--only", "machine", "ceilings")
    assert status == 1
    assert results["machine"] == {"status": "failed", "why": "MemoryError: out of memory"}
    assert results["ceilings"]["status"] == "measured"
    assert "machine: failed: MemoryError: out of memory" in printed


def test_a_setting_that_this_version_does_not_have_refuses_its_row_only(tmp_path: Path, benchmark: ModuleType) -> None:
    options = benchmark.Options("cpu", True, None, 1, tmp_path / "x.json")
    row = benchmark.Row("future", ("engine.does_not_exist=1",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ROWS", (row,))
        result = benchmark.run_section("future", options)
    assert result["status"] == "refused"
    assert "engine.does_not_exist is not a setting" in result["why"]


def test_what_begins_after_the_time_is_left_out_and_said(run: Callable) -> None:
    _, printed, results = run("--minutes", "0", "--only", "machine", "ceilings")
    assert {result["status"] for result in results.values()} == {"left out"}
    assert "ceilings: left out: --minutes 0 were over" in printed


def test_spread_is_relative_to_the_median(benchmark: ModuleType) -> None:
    assert benchmark.spread([1.0, 2.0, 2.0, 5.0]) == 2.0
