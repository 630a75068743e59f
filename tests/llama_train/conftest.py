"""A tiny run: shards of random documents, and a configuration that trains on them in seconds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.shards.writer import write_root
from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from llama_train.prove.harness import make_shards

VOCABULARY = 101


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of random documents: two sources for training, the same two for validation."""
    directory = tmp_path_factory.mktemp("shards")
    make_shards(directory, VOCABULARY, 20_000, validation_tokens=4_000)
    return directory


@pytest.fixture
def tiny(tiny_shards: Path, tmp_path: Path) -> list[str]:
    """Overrides of llama-train for a run of 12 steps in tmp_path/run."""
    return [
        "model=tiny",
        f"model.vocab_size={VOCABULARY}",
        "model.context=32",
        f"data.shards={tiny_shards}",
        "data.sequence_length=32",
        "data.batch_size=4",
        "optimizer.learning_rate=1e-2",
        "steps=12",
        "checkpoint.every=4",
        "logging.console=none",
        "logging.report=false",
        f"output={tmp_path}",
        "name=run",
    ]


@pytest.fixture
def with_tasks(tiny: list[str], tiny_shards: Path, tmp_path: Path) -> list[str]:
    """A run on shards that have a tokenizer, and tasks for it; of one an example cannot be scored."""
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    train_sentencepiece(["the cat sat on the mat " * 9], shards / "tokenizer" / "tokenizer.model", 275)
    about = load_tokenizer(shards / "tokenizer" / "tokenizer.model")
    tokens = {"file": "tokenizer/tokenizer.model", "fingerprint": "proof", "vocabulary_size": 101}
    write_root(
        shards,
        tokens | {"bos_id": about.bos_id, "eos_id": about.eos_id},
        {"train": ["even", "odd"], "validation": ["even", "odd"]},
    )
    files = tmp_path / "tasks"
    files.mkdir()
    choices = [{"query": query, "choices": ["sat", "mat on"], "gold": 0} for query in ("the cat", "the mat", "the")]
    (files / "mats.jsonl").write_text("".join(json.dumps(choice) + "\n" for choice in choices))
    following = [{"context": context, "continuation": "the cat"} for context in ("sat on", "the mat on", "cat")]
    (files / "next.jsonl").write_text("".join(json.dumps(example) + "\n" for example in following))
    (files / "long.jsonl").write_text(
        json.dumps({"context": "the", "continuation": "cat " * 99}) + "\n" + json.dumps(following[0]) + "\n"
    )
    return [*tiny, f"data.shards={shards}", "model.vocab_size=300", f"validation.task_files={files}"]


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess]:
    """Run `llama-train` in processes of its own, as a user does, under torchrun for more than one."""

    def run(overrides: list[str], processes: int = 1, timeout: float = 120) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(overrides, processes), env=environment(), capture_output=True, text=True, timeout=timeout
        )

    return run


def command(overrides: list[str], processes: int = 1) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *torchrun, "-m", "llama_train", *overrides]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
