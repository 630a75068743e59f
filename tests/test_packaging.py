import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ["data_pipeline", "launch", "llama_foundation", "llama_train"]


def pins() -> dict[str, str]:
    """Package name -> pinned version, of the constraints file."""
    lines = (ROOT / "constraints-3.11.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [path] = folder.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_configuration_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    configs = {f"llama_foundation/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert "llama_foundation/configs/train.yaml" in configs
    assert modules | configs <= names
    assert {name.split("/")[0] for name in names} == set(PACKAGES)


def test_wheel_names_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert "\nLicense-Expression: Apache-2.0\n" in archive.read(metadata).decode()
        assert metadata.replace("METADATA", "licenses/LICENSE") in archive.namelist()


def test_installed_wheel_composes_from_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    program = (
        "import sys; from llama_foundation import compose; from llama_train.config import TrainConfig\n"
        "print(compose.CONFIGS)\n"
        "sys.exit(compose.main('train', TrainConfig, lambda config: print(config.model.layers)))"
    )
    command = [sys.executable, "-P", "-c", program, "experiment=quickstart", "data.shards=x", "model.layers=3"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "site" / "llama_foundation" / "configs"), "3"]


@pytest.mark.parametrize(("script", "target"), PROJECT["scripts"].items())
def test_every_command_exists(script: str, target: str) -> None:
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_direct_dependency_is_pinned_within_its_claimed_range() -> None:
    requirements = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
    for requirement in requirements:
        assert requirement.specifier.contains(pins()[requirement.name]), requirement


def test_torch_is_pinned_without_a_build_so_that_cpu_and_gpu_wheels_fit() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pins()["torch"])


def test_only_the_python_version_that_has_constraints_is_claimed() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.12"
    assert [path.name for path in ROOT.glob("constraints*.txt")] == ["constraints-3.11.txt"]


@pytest.mark.parametrize("minor", [9, 14])
def test_setup_refuses_another_python_before_it_makes_anything(tmp_path: Path, minor: int) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints-3.11.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "python3"
    pretend = f"import sys; sys.version_info = (3, {minor}, 0); exec(sys.argv[1])"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    fake.chmod(0o755)
    done = subprocess.run(["make", "setup", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"is Python 3.{minor}; llama-train is tested on 3.11 only" in done.stderr
    assert not (tmp_path / ".venv").exists()


def run_ci(tmp_path: Path, make: str) -> subprocess.CompletedProcess:
    """Run a copy of .ci/run with `make` replaced by a shell script."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "bin" / "make").write_text(f"#!/bin/sh\n{make}\n")
    (tmp_path / "bin" / "make").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)


def test_ci_stops_at_the_first_failing_step_and_says_which(tmp_path: Path) -> None:
    done = run_ci(tmp_path, 'echo "$1" >> made; test "$1" != test || exit 7')
    assert done.returncode == 7
    assert (tmp_path / "made").read_text().split() == ["setup", "lint", "test"]
    assert re.search(
        r"passed  setup: \d+ s\npassed  lint: \d+ s\nFAILED  test: exit status 7 after \d+ s\n$", done.stdout
    )


def test_ci_passes_when_every_step_does_and_takes_75_minutes_at_most(tmp_path: Path) -> None:
    done = run_ci(tmp_path, "true")
    assert done.returncode == 0
    assert "FAILED" not in done.stdout
    minutes = [int(n) for n in re.findall(r"^step (\d+) ", (ROOT / ".ci" / "run").read_text(), re.M)]
    assert len(minutes) == done.stdout.count("passed  ")
    assert sum(minutes) <= 75
