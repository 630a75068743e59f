"""What the shards say about documents with a past: published ones, clusters, scores."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_pipeline.batches import write_documents
from data_pipeline.config import DataPipelineConfig
from data_pipeline.document import Documents
from data_pipeline.engines.local import LocalEngine
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.run import Pipeline
from llama_foundation.compose import compose
from llama_foundation.errors import DataError
from tests.data_pipeline.conftest import make_documents

WORDS = ["some", "words", "that", "a", "tokenizer", "can", "be", "trained", "on", "in", "a", "short", "time"]


def shards(tmp_path, rows, scores=None, *overrides):
    """Write documents as shards; return (output, statistics of the stage)."""
    settings = ["input.paths=[x]", f"output={tmp_path / 'out'}", "tokenizer.train.vocabulary_size=300", *overrides]
    config = compose("data", DataPipelineConfig, settings)
    generator = np.random.default_rng(0)
    filled = [{"text": " ".join(generator.choice(WORDS, 30)), **row} for row in rows]
    batch = make_documents(filled).batch
    for name, values in (scores or {}).items():
        batch = batch.append_column(name, pa.array(values, pa.float32()))
    half = len(rows) // 2
    blocks = [
        block
        for number, piece in enumerate((batch.slice(0, half), batch.slice(half)))
        for block in write_documents(tmp_path / f"{number}.arrow", Documents(piece))
    ]
    described = {"settings": {}, "versions": {}, "inputs": {}}
    with LocalEngine(1) as engine:
        pipeline = Pipeline(config, tmp_path / "out", engine, Console(quiet=True), described)
        statistics = pipeline._shards(blocks, [StageStatistics("read")])
    return tmp_path / "out", statistics[-1]


def provenance(output, split="*"):
    return [row for path in sorted(output.glob(f"{split}/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_published_documents_are_counted_and_not_written(tmp_path):
    rows = [{"published": number % 4 == 0, "source": "web" if number < 30 else "old"} for number in range(40)]
    rows[30:] = [{**row, "published": True} for row in rows[30:]]
    output, statistics = shards(tmp_path, rows)
    written = provenance(output)
    assert len(written) == 30 - 8
    assert sorted(row["row"] for row in written) == [number for number in range(30) if number % 4]
    assert {source: tally["shards.already_published"][0] for source, tally in statistics.dropped.items()} == {
        "web": 8,
        "old": 10,
    }
    assert statistics.kept["web"]["unknown"][0] == 22
    assert statistics.examples["shards.already_published"]
    assert sorted(json.loads((output / "shards.json").read_text())["splits"]["train"]) == ["web"]


def test_nothing_but_published_documents_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no document was kept: shards\.already_published 6"):
        shards(tmp_path, [{"published": True}] * 6)


def test_near_copies_are_on_one_side_of_the_split(tmp_path):
    rows = [{"cluster": bytes([number % 20]) * 16, "copies": 5} for number in range(100)]
    output, _ = shards(tmp_path, rows, None, "validation.fraction=0.3")
    train, held_out = ({row["cluster"] for row in provenance(output, split)} for split in ("train", "validation"))
    assert len(train | held_out) == 20
    assert 2 <= len(held_out) <= 12
    assert not train & held_out


def test_the_sidecar_keeps_cluster_copies_license_date_and_scores(tmp_path):
    rows = [
        {
            "license": f"CC-{number}",
            "date": f"2020-01-{number + 1:02d}",
            "copies": number + 1,
            "url": f"http://{number}",
            "opt_out": "meta robots: noai" if number in (4, 9) else None,
        }
        for number in range(20)
    ]
    rows[3]["cluster"] = bytes(range(16))
    scores = {"c4.sentences": [float(n) for n in range(20)], "gopher.ratio": [None, *(n / 7 for n in range(19))]}
    output, statistics = shards(tmp_path, rows, scores)
    assert statistics.noted == {"shards.opt_out": 2}
    written = {row["row"]: row for row in provenance(output)}
    assert len(written) == 20
    for number, row in written.items():
        assert (row["license"], row["date"], row["copies"], row["url"]) == (
            f"CC-{number}",
            f"2020-01-{number + 1:02d}",
            number + 1,
            f"http://{number}",
        )
        assert row["cluster"] == (bytes(range(16)).hex() if number == 3 else None)
        assert row["opt_out"] == ("meta robots: noai" if number in (4, 9) else None)
        assert row["c4.sentences"] == number
        assert row["gopher.ratio"] == (None if number == 0 else float(np.float32((number - 1) / 7)))
    schema = pq.read_schema(next(output.glob("train/*/*.parquet")))
    assert schema.field("gopher.ratio").type == pa.float32()


def test_validation_is_a_shard_set_of_its_own_and_every_document_is_in_one(tmp_path):
    output, statistics = shards(
        tmp_path, [{"source": ("a", "b")[n % 2]} for n in range(60)], None, "validation.fraction=0.3"
    )
    splits = json.loads((output / "shards.json").read_text())["splits"]
    counts = {(split, source): each["documents"] for split, of in splits.items() for source, each in of.items()}
    assert counts.keys() == {("train", "a"), ("train", "b"), ("validation", "a"), ("validation", "b")}
    assert counts["train", "a"] + counts["validation", "a"] == 30
    assert sum(counts.values()) == 60
    ids = [row["record_id"] for row in provenance(output)]
    assert len(set(ids)) == 60
    assert statistics.tokens["a"].keys() == {"train", "validation"}
