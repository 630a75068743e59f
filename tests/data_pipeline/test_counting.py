"""Counting in columns against counting one by one."""

import random
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.counting import count_batch, count_written, example_hashes
from data_pipeline.document import Documents
from data_pipeline.filters.measure import KEEP, Measurement, Rule, decide
from data_pipeline.report import statistics as statistics_module
from data_pipeline.report.statistics import StageStatistics
from tests.data_pipeline.conftest import make_documents

RULES = [Rule("low", "share", minimum=0.3), Rule("high", "size", maximum=60.0), Rule("both", "share", 0.1, 0.9)]


def corpus(count=400):
    generator = random.Random(4)
    rows = []
    for _ in range(count):
        host = generator.choice(["https://a.org/x", "http://user@B.org:80/y?z", "http://c.net", "no url at all", None])
        text = "é" * generator.randrange(1, 90)
        rows.append(
            {
                "source": generator.choice(["web", "books"]),
                "language": generator.choice(["en", "de", None]),
                "url": host,
            }
            | {"text": text, "license": generator.choice(["mit", None])}
        )
    return make_documents(rows).batch


def measured(batch, seed=7):
    """Return scores that depend on the document alone."""
    numbers = np.frombuffer(b"".join(batch["record_id"].to_pylist()), np.uint8).reshape(-1, 16)
    share = numbers[:, 0] / 255
    size = np.array([float(len(text)) for text in batch["text"].to_pylist()])
    return Measurement(
        {"share": np.where(numbers[:, 1] < 40, np.nan, share), "size": size},
        drops={"odd": numbers[:, 2] < 25},
        counts={"lines": int(numbers[:, 3].sum())},
    )


def counted(batch, into=None):
    statistics = into or StageStatistics("made")
    measurement = measured(batch)
    verdicts, reasons = decide(measurement, RULES, batch.num_rows)
    before = Documents(batch)
    kept = before.select(verdicts == KEEP)
    count_batch(statistics, before, kept, verdicts, reasons, measurement, RULES, seed=3)
    return statistics, [reasons[verdict] if verdict != KEEP else None for verdict in verdicts.tolist()], measurement


def test_columns_are_counted_as_documents_one_by_one():
    batch = corpus()
    statistics, verdicts, measurement = counted(batch)
    rows = batch.to_pylist()
    expected = {"seen": {}, "kept": {}, "dropped": {}}
    for row, verdict in zip(rows, verdicts, strict=True):
        language = row["language"] or "unknown"
        tables = [("seen", language), ("kept", language) if verdict is None else ("dropped", f"made.{verdict}")]
        for table, key in tables:
            tally = expected[table].setdefault(row["source"], {}).setdefault(key, [0, 0])
            tally[0] += 1
            tally[1] += len(row["text"].encode())
    assert {name: getattr(statistics, name) for name in expected} == expected
    share, size = measurement.scores["share"], measurement.scores["size"]
    beyond = {
        "made.low": share < 0.3,
        "made.high": size > 60,
        "made.both": (share < 0.1) | (share > 0.9),
    }
    sizes = np.array([len(row["text"].encode()) for row in rows])
    assert statistics.failed == {reason: [failed.sum(), sizes[failed].sum()] for reason, failed in beyond.items()}
    assert statistics.abstained == {"made.share": int(np.isnan(share).sum())}
    assert statistics.edits == {"made.lines": measurement.counts["lines"]}
    assert statistics.histograms["made.size"] == Counter(f"{each:g}" for each in size)
    assert sum(statistics.histograms["made.share"].values()) == (~np.isnan(share)).sum()


def test_examples_near_a_cut_are_the_nearest_on_both_sides():
    batch = corpus()
    statistics, verdicts, measurement = counted(batch)
    share = measurement.scores["share"]
    for into, wanted in (("near_kept", None), ("near_dropped", "low")):
        rows = [row for row, verdict in enumerate(verdicts) if verdict == wanted and not np.isnan(share[row])]
        nearest = sorted(abs(share[row] - 0.3) for row in rows)[:3]
        found = getattr(statistics, into)["made.low"]
        assert [each["distance"] for each in found] == pytest.approx(nearest)
        assert all(share[each["row"]] == each["score"] for each in found)
    both = [
        min(abs(share[row] - 0.1), abs(share[row] - 0.9)) for row, verdict in enumerate(verdicts) if verdict is None
    ]
    nearest = sorted(each for each in both if not np.isnan(each))[:3]
    assert [each["distance"] for each in statistics.near_kept["made.both"]] == pytest.approx(nearest)


@pytest.mark.parametrize("size", [1, 23, 150])
def test_nothing_depends_on_the_cut(size, monkeypatch):
    monkeypatch.setattr(statistics_module, "HOST_SAMPLE", 20)
    monkeypatch.setattr("data_pipeline.counting.HOST_SAMPLE", 20)
    batch = corpus()
    whole = counted(batch)[0]
    pieces = [batch.slice(start, size) for start in range(0, batch.num_rows, size)]
    random.Random(size).shuffle(pieces)
    merged = StageStatistics("made")
    for piece in pieces:
        merged.merge(StageStatistics.from_json(counted(piece)[0].to_json()))
    assert merged == whole
    added = StageStatistics("made")
    for piece in pieces:
        counted(piece, added)
    assert added == whole, "batch by batch into the same statistics"
    assert len(whole.hosts["dropped"]) == 20
    assert all(whole.near_kept[f"made.{rule.reason}"] for rule in RULES)


def test_hosts_are_those_of_the_dropped_documents_with_the_smallest_hashes():
    batch = corpus()
    statistics, verdicts, _ = counted(batch)
    hashes = example_hashes(batch["record_id"], 3).tolist()
    expected = sorted(
        [hash_, urlsplit(url).hostname or "no host"]
        for hash_, url, verdict in zip(hashes, batch["url"].to_pylist(), verdicts, strict=True)
        if verdict and url
    )
    assert statistics.hosts == {"dropped": expected}
    assert statistics.urls == {"dropped": len(expected)}
    assert {host for _, host in expected} == {"a.org", "b.org", "c.net", "no host"}


def test_what_goes_into_the_shards_is_counted_with_its_licenses_and_hosts():
    batch = corpus()
    statistics = StageStatistics("shards")
    count_written(statistics, batch, seed=3)
    licenses = Counter(license_ or "none stated" for license_ in batch["license"].to_pylist())
    assert {name: tally[0] for name, tally in statistics.licenses.items()} == licenses
    hosts = Counter(urlsplit(url).hostname or "no host" for url in batch["url"].to_pylist() if url)
    assert Counter(host for _, host in statistics.hosts["kept"]) == hosts
    assert statistics.urls == {"kept": sum(hosts.values())}


def test_hashes_depend_on_seed_and_document_and_spread_evenly():
    ids = pa.array([bytes([1]) + bytes(7) + number.to_bytes(8, "big") for number in range(4)], pa.binary(16))
    assert len(set(example_hashes(ids, 0).tolist())) == 1, "only the first half of the id: it is a hash already"
    batch = corpus(2000)
    first, second = example_hashes(batch["record_id"], 0), example_hashes(batch["record_id"], 1)
    assert len(set(first.tolist()) | set(second.tolist())) == 4000
    assert np.abs(np.histogram(first.astype(float), 10, (0.0, 2.0**64))[0] - 200).max() < 60
    np.testing.assert_array_equal(example_hashes(batch["record_id"].slice(5, 10), 0), first[5:15])
