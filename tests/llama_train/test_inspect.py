"""llama-inspect on a small run."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.shards.writer import ShardSetWriter, write_root
from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train import inspect as inspect_command
from llama_train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from llama_train.data.amendments import Amendment
from llama_train.data.order import TokenOrder


@pytest.fixture
def run(tmp_path):
    """A run directory of 10 steps over 30 documents of 20 tokens."""
    shards = tmp_path / "shards"
    (shards / "tokenizer").mkdir(parents=True)
    (shards / "tokenizer" / "tokenizer.model").write_bytes(b"a tokenizer")
    with ShardSetWriter(shards / "train" / "web", "f", 300) as writer:
        for row in range(30):
            words = f"[red] document {row} \x1b[31m begins with these words and goes on for a while"
            origin = {"record_id": f"{row:032x}", "source": "web", "file": "texts/web.jsonl", "row": row, "url": None}
            writer.add(np.full(20, row), origin | {"language": None, "first_words": words})
    tokenizer = {
        "file": "tokenizer/tokenizer.model",
        "fingerprint": "f",
        "vocabulary_size": 300,
        "bos_id": 1,
        "eos_id": 2,
    }
    write_root(shards, tokenizer, {"train": ["web"]})
    config = TrainConfig(
        steps=10,
        model=ModelConfig("tiny", 300, 8, 1, 1, 1, 8, 16),
        data=DataConfig(shards=str(shards), sequence_length=16, batch_size=2),
        optimizer=OptimizerConfig(learning_rate=0.1),
    )
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(compose.dump(config))
    return directory


def inspect(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["llama-inspect", *arguments])
    status = inspect_command.main()
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rows_behind(run, step, amendments=()):
    config = compose.load(run / "config.yaml", TrainConfig)
    order = TokenOrder(config.data, config.steps, config.seed, amendments)
    batches = order.local_micro_batches(step, 0, 1, 2)
    return {int(token) for batch in batches for token in batch.tokens.flatten()}  # a token's id is its document's row


def printed_rows(output):
    lines = [line.strip("│").split("│") for line in output.splitlines() if line.startswith("│")]
    return {int(cells[2]) for cells in lines if cells[2].strip()}


def test_the_table_shows_the_documents_of_the_step(run, monkeypatch, capsys):
    status, output, _ = inspect(monkeypatch, capsys, f"run={run}", "step=4")
    assert status == 0
    assert "2 sequences of 16 tokens" in output.replace("\n", " ")
    assert printed_rows(output) == rows_behind(run, 3)
    for heading in ("source", "file", "row", "sample", "first words"):
        assert heading in output
    assert "texts/web.jsonl" in output
    assert "[red] document" in output
    assert "\x1b" not in output
    assert max(len(line) for line in output.splitlines() if line[0] in "│┏┡└") <= 80


def test_the_number_of_documents_and_words_is_limited(run, monkeypatch, capsys):
    _, output, _ = inspect(monkeypatch, capsys, f"run={run}", "step=1", "limit=1", "first_words=2")
    assert len(printed_rows(output)) == 1
    assert "limit=0 prints all" in output
    assert "[red] document" in output
    assert "begins" not in output


def test_amendments_of_the_run_are_followed(run, monkeypatch, capsys):
    (run / "amendments.json").write_text('[{"at_step": 3, "jump": 4}]')
    _, output, _ = inspect(monkeypatch, capsys, f"run={run}", "step=6")
    assert printed_rows(output) == rows_behind(run, 5, [Amendment(3, 4)]) == rows_behind(run, 9)


def test_amendments_that_cannot_be_read_are_refused_by_name(run, monkeypatch, capsys):
    (run / "amendments.json").write_text('[{"at": 3}]')
    status, _, error = inspect(monkeypatch, capsys, f"run={run}", "step=6")
    assert status == 2
    assert "amendments.json: not a list of amendments" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step=1"], "run"),
        (["run=nowhere", "step=1"], "nowhere/config.yaml does not exist; give the directory of a run"),
        (["run={run}", "step=11"], "step=11: the run has steps 1 to 10"),
        (["run={run}", "step=0"], "step=0 must be at least 1"),
        (["run={run}", "step=1", "limits=3"], "limits"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(run, monkeypatch, capsys, arguments, message):
    status, _, error = inspect(monkeypatch, capsys, *(argument.format(run=run) for argument in arguments))
    assert status == 2
    assert error.startswith("error: ")
    assert message in error


def test_it_runs_as_a_module_and_leaves_nothing_behind(run, tmp_path):
    place = tmp_path / "elsewhere"
    place.mkdir()
    import llama_train

    source = str(llama_train.__path__[0]).removesuffix("/llama_train")
    done = subprocess.run(
        [sys.executable, "-m", "llama_train.inspect", f"run={run}", "step=4"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=place,
        env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert printed_rows(done.stdout) == rows_behind(run, 3)
    assert list(place.iterdir()) == []


def test_hydras_own_flags_work(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    before = sorted(run.iterdir())
    status, output, _ = inspect(monkeypatch, capsys, "run=x", "step=3", "--cfg", "job")
    assert status == 0
    assert "limit: 50" in output
    assert sorted(run.iterdir()) == before


def test_a_bad_limit_is_refused():
    with pytest.raises(ConfigError, match="first_words=0 must be at least 1"):
        compose.compose("inspect", inspect_command.InspectConfig, ["run=x", "step=1", "first_words=0"])
