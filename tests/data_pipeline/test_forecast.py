"""A forecast from a part of a made corpus against a real run over all of it."""

import json
import random
import sys

import numpy as np
import pytest

from data_pipeline.__main__ import main
from data_pipeline.forecast import ForecastConfig, Sample, choose, expect, piece_sizes
from data_pipeline.read import plan
from data_pipeline.sampled import Use, times_cut
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError

WORDS = ["the", "river", "of", "stone", "and", "light", "have", "been", "with", "seen", "by", "many", "people", "year"]


def write_corpus(directory, files=10, documents=120):
    generator = random.Random(5)
    directory.mkdir()
    for file in range(files):
        with open(directory / f"{file}.jsonl", "w") as out:
            for _ in range(documents):
                text = " ".join(generator.choice(WORDS) + str(generator.randrange(999)) for _ in range(120))
                out.write(json.dumps({"text": text.replace("1", "one"), "source": "web"}) + "\n")
    return directory


def settings(directory, output, *more):
    fixed = [f"input.paths=[{directory}/*.jsonl]", f"output={output}", "workers=1", "partition_bytes=20000"]
    fixed.append("pipeline.stages=[gopher_quality,gopher_repetition,exact_dedup]")
    return [*fixed, "tokenizer.train.vocabulary_size=400", "tokenizer.train.sample_bytes=100000", *more]


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_forecast_from_a_tenth_is_close_to_the_run(tmp_path, monkeypatch, capsys):
    directory = write_corpus(tmp_path / "in")
    run = settings(directory, tmp_path / "out")
    samples = ["forecast.fraction=0.1", "forecast.minimum_bytes=0", "json=true"]
    monkeypatch.setattr(sys, "argv", ["llama-data", "forecast", *run, *samples])
    assert main() == 0
    told = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "the samples are gone"
    monkeypatch.setattr(sys, "argv", ["llama-data", *run])
    assert main() == 0
    stages = json.loads((tmp_path / "out" / "stats.json").read_text())["stages"]
    phases = {phase["phase"]: phase for phase in told["phases"]}
    disk = size(tmp_path / "out" / ".work") + sum(size(tmp_path / "out" / split) for split in ("train", "validation"))
    assert told["disk_bytes"][0] * 0.8 < disk < told["disk_bytes"][1] * 1.25
    read = size(next((tmp_path / "out" / ".work").glob("read-*")))
    assert phases["read"]["disk_bytes"][0] == pytest.approx(read, rel=0.1)
    filters = sum(stage["cpu_milliseconds"] for stage in stages if stage["stage"].startswith("gopher")) / 3.6e6
    assert filters / 3 < phases["gopher_quality+gopher_repetition"]["cpu_hours"][1] < filters * 3
    assert phases["exact_dedup.keys"]["law"] == "buckets"
    assert phases["encode"]["law"] == "survivors"
    assert phases["tokenizer"]["law"] == "capped"
    assert all(phase["peak_bytes"] > 10_000_000 for phase in told["phases"])


def made_up(input_bytes, kept_bytes, read, encode, trained):
    uses = {"read": read, "exact_dedup": 1.0, "encode": encode, "tokenizer": trained}
    uses = {name: Use(seconds, 50_000_000, int(1000 * seconds)) for name, seconds in uses.items()}
    return Sample(input_bytes, input_bytes / 100, 100, kept_bytes, uses)


def test_every_phase_grows_by_its_law():
    config = compose("data_forecast", ForecastConfig, ["input.paths=[x]", "output=x", "pipeline.stages=[exact_dedup]"])
    config.tokenizer.train.sample_bytes = 3000
    small, large = made_up(1000, 800, 1.0, 2.0, 1.0), made_up(2000, 1500, 2.0, 3.75, 1.9)
    phases = {phase.phase: phase for phase in expect(small, large, 200_000, 2000, 4, config)}
    assert phases["read"].cpu_hours == pytest.approx([200 / 3600] * 2)
    assert phases["read"].hours == pytest.approx([50 / 3600] * 2)
    assert phases["read"].exponent == pytest.approx(1)
    survivors = 0.9068905956085185  # log2(1500 / 800)
    assert phases["encode"].cpu_hours == pytest.approx([3.75 / 3600 * 100 ** (survivors - 0.05), 375 / 3600])
    assert phases["tokenizer"].cpu_hours == pytest.approx([2 * 1.9 / 3600] * 2), "3000 bytes of 1500"
    assert phases["tokenizer"].hours == phases["tokenizer"].cpu_hours, "one task has one worker"


def test_samples_are_nested_whole_pieces_and_do_not_depend_on_the_order_of_files(tmp_path):
    directory = write_corpus(tmp_path / "in", files=3, documents=40)
    overrides = settings(directory, tmp_path / "out", "partition_bytes=3000", "forecast.minimum_bytes=0")
    config = compose("data_forecast", ForecastConfig, [*overrides, "forecast.fraction=0.3"])
    sizes = piece_sizes(plan.cut(plan.find(config.input), config.partition_bytes, config.input))
    assert sum(sizes.values()) == size(directory)
    larger, smaller = choose(sizes, config)
    assert set(smaller) < set(larger)
    assert 0.3 <= sum(sizes[piece] for piece in larger) / sum(sizes.values()) < 0.35
    assert choose(dict(reversed(sizes.items())), config) == (larger, smaller)
    with pytest.raises(ConfigError, match="input is 1 piece"):
        choose(dict(list(sizes.items())[:1]), config)


@pytest.mark.parametrize("documents", [500, 700, 850, 1200, 6500])
def test_how_often_ranges_are_cut_again_is_that_of_a_simulation(documents):
    """Documents of 20 bytes, 100 ranges of a capacity of 85 bytes: 8 documents fit into a range that is not cut."""
    generator = np.random.default_rng(3)
    written, capacity = [], 85
    for _ in range(200):
        ranges = 20 * np.bincount(generator.integers(0, 100, documents), minlength=100)
        again = ranges[ranges > 2 * capacity]
        parts = [20 * np.bincount(generator.integers(0, -(-size // capacity), size // 20)) for size in again]
        twice = sum(int(part[part > 2 * capacity].sum()) for part in parts)
        written.append((again.sum() + twice) / ranges.sum())
    told = times_cut(documents / 100 * 20, documents / 100, capacity)
    assert told == pytest.approx(np.mean(written), abs=0.05)
