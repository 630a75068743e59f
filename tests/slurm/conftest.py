import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, cluster, install
from slurm_settings import VOCABULARY, settings_for

from llama_train.prove.harness import make_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM of four nodes with accounting."""
    problem = install(accounting=True)
    if problem is not None:
        pytest.skip(problem)
    with cluster(tmp_path_factory.mktemp("slurm"), nodes=4, accounting=True) as running:
        yield running


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    make_shards(directory, VOCABULARY, 20_000, validation_tokens=4_000)
    return directory


@pytest.fixture
def settings(shards: Path, tmp_path: Path) -> list[str]:
    return settings_for(shards, tmp_path)


@pytest.fixture(scope="session")
def launch(slurm: Cluster) -> Callable[..., subprocess.CompletedProcess]:
    """Run llama-launch as a user of the test cluster does."""

    def run(*arguments: str, secret: str | None = None, checkout: Path = ROOT) -> subprocess.CompletedProcess:
        environment = slurm.environment | {"PYTHONPATH": str(checkout), "WANDB_MODE": "disabled"}
        environment |= {"WANDB_API_KEY": secret} if secret else {}
        command = [sys.executable, "-m", "launch", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=checkout)

    return run
