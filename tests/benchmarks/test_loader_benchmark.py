"""The loader's benchmark runs, and what it times is the same work."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import loader
from data_pipeline.shards.reader import open_root
from llama_train.config import DataConfig, Packing
from llama_train.data.order import TokenOrder


def test_it_prints_a_ratio_for_every_contestant(capsys):
    loader.compare(tokens=80_000, sequence_length=128, rounds=2, steps=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0].startswith("llama-pack: ")
    names = ["ours, concatenate", "ours, best_fit", "torch DataLoader", "memmap slices"]
    for name, line in zip(names, lines[2:], strict=True):
        assert line.startswith(name)
        speed, target, ratio = (float(figure) for figure in line.removeprefix(name).split())
        assert speed > 0
        assert target == pytest.approx(speed / 50, abs=0.02)
        assert ratio > 0


def test_the_data_loader_makes_the_same_rows_as_ours(tmp_path):
    loader.make_shards(tmp_path, 20_000, 128)
    root = open_root(tmp_path)
    data = DataConfig("", sequence_length=128, batch_size=4, packing=Packing.concatenate)
    [batch] = TokenOrder(data, 1, seed=0, root=root).local_micro_batches(0, 0, 1, 4)
    rows = loader.Rows(tmp_path / "train" / "web" / "shard-00000.bin", 128)
    theirs = {row[0].tobytes(): row for row in (rows[number] for number in range(len(rows)))}
    for row in range(4):
        ours = [getattr(batch, name)[row].numpy() for name in ("tokens", "labels", "document_ids", "positions")]
        expected = theirs[ours[0].tobytes()]
        expected = (*expected[:2], expected[2] - expected[2][0], expected[3])
        for mine, other in zip(ours, expected, strict=True):
            assert np.array_equal(mine, other)


def test_a_seek_needs_no_torch_and_less_memory_than_promised():
    command = [sys.executable, "-m", "benchmarks.loader", "--seek"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["torch"] == 0
    assert 30 < found["peak_mb"] < 200
    assert 0 < found["share_ms"] <= found["batch_ms"]
