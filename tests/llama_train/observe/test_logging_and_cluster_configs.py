import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from llama_foundation.compose import CONFIGS
from llama_train.config import ClusterConfig, LoggingConfig
from llama_train.observe.speed import PEAK_TFLOPS


def _load(group: str, member: str, schema: type) -> object:
    values = OmegaConf.load(CONFIGS / group / f"{member}.yaml")
    values.pop("defaults", None)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


@pytest.mark.parametrize(
    ("member", "wandb", "tensorboard"),
    [("default", False, False), ("wandb", True, False), ("tensorboard", False, True)],
)
def test_logging_members_fit_the_schema(member, wandb, tensorboard):
    config = _load("logging", member, LoggingConfig)
    assert (config.wandb, config.tensorboard, config.report) == (wandb, tensorboard, True)


@pytest.mark.parametrize(
    ("member", "device", "peak"),
    [
        ("auto", "auto", None),
        ("cpu", "cpu", None),
        ("a100x8", "cuda", PEAK_TFLOPS["A100"]),
        ("h100x8", "cuda", PEAK_TFLOPS["H100"]),
        ("h200x1", "cuda", PEAK_TFLOPS["H200"]),
    ],
)
def test_cluster_members_fit_the_schema_and_the_table_of_peaks(member, device, peak):
    config = _load("cluster", member, ClusterConfig)
    config.check()
    assert (config.name, config.device, config.peak_tflops) == (member, device, peak)


def test_watching_and_surviving_load_neither_torch_nor_matplotlib():
    modules = "llama_train.observe.observers, llama_train.survive.watchdog, llama_train.survive.signals"
    script = f"import sys, {modules}; print({{'torch', 'matplotlib', 'wandb'}} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "set()\n"
