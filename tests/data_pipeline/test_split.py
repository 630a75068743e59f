import itertools

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.split import is_validation, sample_shares, validation_limit
from llama_foundation.errors import ConfigError, DataError


def tables(count, pieces, seed=0):
    generator = np.random.default_rng(seed)
    table = pa.table(
        {
            "validation_hash": generator.integers(0, 2**64, count, np.uint64),
            "sample_hash": generator.integers(0, 2**64, count, np.uint64),
            "bytes": generator.integers(1, 100, count),
            "source": pa.array(
                generator.choice(["books", "code", "web"], count, p=[0.1, 0.3, 0.6])
            ).dictionary_encode(),
        }
    )
    bounds = np.linspace(0, count, pieces + 1).astype(int)
    return [table.slice(start, end - start) for start, end in itertools.pairwise(bounds)], table


def test_about_the_fraction_is_held_out():
    pieces, table = tables(10_000, 3)
    held_out = is_validation(table["validation_hash"].to_numpy(), validation_limit(pieces, 0.01))
    assert 70 < held_out.sum() < 130


def test_one_document_is_held_out_where_the_fraction_catches_none():
    pieces, table = tables(10, 2)
    hashes = table["validation_hash"].to_numpy()
    assert np.flatnonzero(is_validation(hashes, validation_limit(pieces, 1e-9))).tolist() == [hashes.argmin()]


def test_fraction_zero_holds_out_nothing():
    pieces, table = tables(10, 2)
    assert not is_validation(table["validation_hash"].to_numpy(), validation_limit(pieces, 0)).any()


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match=r"validation\.fraction=0\.01 holds out every document"):
        validation_limit(tables(1, 1)[0], 0.01)


@pytest.mark.parametrize("pieces", [1, 4, 50])
def test_the_sample_is_the_smallest_hashes_that_fit_and_nothing_held_out(pieces):
    parts, table = tables(200, pieces)
    limit = validation_limit(parts, 0.2)
    rows = sorted(table.to_pylist(), key=lambda row: row["sample_hash"])
    rows = [row for row in rows if row["validation_hash"] >= limit]

    def largest_hash(sample_bytes):
        shares = sample_shares(parts, limit, sample_bytes, {})
        assert shares.keys() == {"books", "code", "web"}
        assert {share.most_bytes for share in shares.values()} == {sample_bytes}
        (largest,) = {share.largest_hash for share in shares.values()}
        return largest

    chosen = [row for row in rows if row["sample_hash"] <= largest_hash(1000)]
    assert sum(row["bytes"] for row in chosen) <= 1000 < sum(row["bytes"] for row in rows[: len(chosen) + 1])
    assert largest_hash(0) == rows[0]["sample_hash"]
    assert largest_hash(10**9) == rows[-1]["sample_hash"]


@pytest.mark.parametrize("pieces", [1, 4, 50])
def test_a_weighted_sample_takes_from_every_source_its_part(pieces):
    parts, table = tables(400, pieces)
    limit = validation_limit(parts, 0.2)
    shares = sample_shares(parts, limit, 1200, {"books": 3, "web": 1, "code": 0})
    assert {source: share.most_bytes for source, share in shares.items()} == {"books": 900, "web": 300}
    for source, share in shares.items():
        rows = [row for row in table.to_pylist() if row["source"] == source and row["validation_hash"] >= limit]
        rows.sort(key=lambda row: row["sample_hash"])
        chosen = [row for row in rows if row["sample_hash"] <= share.largest_hash]
        size = sum(row["bytes"] for row in chosen)
        assert size <= share.most_bytes < size + rows[len(chosen)]["bytes"]


def test_a_weight_of_a_source_without_documents_is_refused_by_name():
    parts, _ = tables(50, 2)
    with pytest.raises(ConfigError, match=r"source_weights names 'boks', .* sources are books, code, web"):
        sample_shares(parts, 0, 1000, {"boks": 1.0, "web": 1.0})
