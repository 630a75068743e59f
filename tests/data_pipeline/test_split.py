import itertools

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.split import is_validation, sample_limit, validation_limit
from llama_foundation.errors import DataError


def tables(count, pieces, seed=0):
    generator = np.random.default_rng(seed)
    table = pa.table(
        {
            "validation_hash": generator.integers(0, 2**64, count, np.uint64),
            "sample_hash": generator.integers(0, 2**64, count, np.uint64),
            "bytes": generator.integers(1, 100, count),
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
    chosen = [row for row in rows if row["sample_hash"] <= sample_limit(parts, limit, 1000)]
    assert sum(row["bytes"] for row in chosen) <= 1000 < sum(row["bytes"] for row in rows[: len(chosen) + 1])
    assert sample_limit(parts, limit, 0) == rows[0]["sample_hash"]
    assert sample_limit(parts, limit, 10**9) == rows[-1]["sample_hash"]
