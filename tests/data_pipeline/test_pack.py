"""llama-pack, as a user runs it."""

import re
import sys

import pytest

from data_pipeline import pack
from data_pipeline.shards.reader import open_root
from llama_train.prove.harness import make_shards


@pytest.fixture
def shards(tmp_path):
    make_shards(tmp_path / "shards", 101, 4_000, validation_tokens=400)
    return tmp_path / "shards"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["llama-pack", *arguments])
    status = pack.main()
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_packs_every_training_source_and_prints_the_comparison(shards, monkeypatch, capsys):
    fingerprint = open_root(shards).fingerprint
    status, output, error = run(monkeypatch, capsys, f"shards={shards}", "sequence_length=48")
    assert (status, error) == (0, "")
    assert sorted(str(path.relative_to(shards)) for path in shards.rglob("packs-*")) == [
        "train/even/packs-48",
        "train/odd/packs-48",
    ]
    assert open_root(shards).fingerprint == fingerprint
    root = open_root(shards)
    for source in ("even", "odd"):
        sets = root.open("train", source)
        lengths = [end - start for start, end in zip(*edges(sets), strict=True)]
        line = next(line for line in output.splitlines() if line.split()[:1] == [source])
        cells = re.split(r"\s{2,}", line.strip())
        assert cells[3] == f"{sum(length > 48 for length in lengths) / len(lengths):.2%}"
    assert "data.packing=best_fit" in output
    assert max(len(line) for line in output.splitlines()[:-1]) <= 80


def edges(shards):
    starts = shards.document_starts(0).tolist()
    return starts[:-1], starts[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sequence_length=8"], "shards: not set"),
        (["shards={shards}"], "sequence_length: not set"),
        (["shards={shards}", "sequence_length=0"], "sequence_length=0 must be between 1 and"),
        (["shards={shards}", "sequence_length=8", "block_documents=0"], "block_documents=0 must be between 1 and"),
        (["shards={shards}/train", "sequence_length=8"], "train/shards.json: does not exist"),
        (["shards={shards}", "sequence_lenght=8"], "sequence_length"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(shards, monkeypatch, capsys, arguments, message):
    status, _, error = run(monkeypatch, capsys, *(argument.format(shards=shards) for argument in arguments))
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
