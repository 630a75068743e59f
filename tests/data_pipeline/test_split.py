import itertools

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.split import (
    index,
    is_validation,
    language_budgets,
    sample_shares,
    text_sizes,
    validation_limit,
)
from llama_foundation.errors import ConfigError, DataError
from tests.data_pipeline.conftest import make_documents


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
            "language": pa.array(generator.choice(["de", "en"], count, p=[0.2, 0.8])).dictionary_encode(),
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
        shares = sample_shares(parts, limit, text_sizes(parts, limit), sample_bytes, {}, 1.0)
        assert [(share.source, share.language) for share in shares] == [("books", None), ("code", None), ("web", None)]
        assert {share.most_bytes for share in shares} == {sample_bytes}
        (largest,) = {share.largest_hash for share in shares}
        return largest

    chosen = [row for row in rows if row["sample_hash"] <= largest_hash(1000)]
    assert sum(row["bytes"] for row in chosen) <= 1000 < sum(row["bytes"] for row in rows[: len(chosen) + 1])
    assert largest_hash(0) == rows[0]["sample_hash"]
    assert largest_hash(10**9) == rows[-1]["sample_hash"]


@pytest.mark.parametrize("pieces", [1, 4, 50])
def test_a_weighted_sample_takes_from_every_source_its_part(pieces):
    parts, table = tables(400, pieces)
    limit = validation_limit(parts, 0.2)
    weights = {"books": 3, "web": 1, "code": 0}
    shares = sample_shares(parts, limit, text_sizes(parts, limit), 1200, weights, 1.0)
    assert {share.source: share.most_bytes for share in shares} == {"books": 900, "web": 300}
    for share in shares:
        rows = [row for row in table.to_pylist() if row["source"] == share.source and row["validation_hash"] >= limit]
        rows.sort(key=lambda row: row["sample_hash"])
        chosen = [row for row in rows if row["sample_hash"] <= share.largest_hash]
        size = sum(row["bytes"] for row in chosen)
        assert size <= share.most_bytes < size + rows[len(chosen)]["bytes"]


def test_a_weight_of_a_source_without_documents_is_refused_by_name():
    parts, _ = tables(50, 2)
    with pytest.raises(ConfigError, match=r"source_weights names 'boks', .* sources are books, code, web"):
        sample_shares(parts, 0, text_sizes(parts, 0), 1000, {"boks": 1.0, "web": 1.0}, 1.0)


def test_sizes_are_the_bytes_of_each_split_source_and_language():
    parts, table = tables(300, 7)
    limit = validation_limit(parts, 0.2)
    expected = {}
    for row in table.to_pylist():
        place = ("validation" if row["validation_hash"] < limit else "train", row["source"], row["language"])
        expected[place] = expected.get(place, 0) + row["bytes"]
    assert text_sizes(parts, limit) == expected


def test_temperature_flattens_the_languages_and_gives_back_what_one_lacks():
    assert language_budgets(1100, {"en": 100_000, "de": 1000}, 1.0) == {"de": 10, "en": 1089}
    assert language_budgets(1100, {"en": 100_000, "de": 1000}, 2.0) == {"de": 100, "en": 1000}  # roots: 316.2 and 31.6
    assert language_budgets(1100, {"en": 100_000, "de": 40}, 1e9) == {"de": 40, "en": 1060}, "half would be 550"
    assert language_budgets(1100, {"en": 300, "de": 40}, 5.0) == {"de": 40, "en": 300}
    assert language_budgets(0, {"en": 300}, 5.0) == {"en": 0}


@pytest.mark.parametrize("pieces", [1, 30])
@pytest.mark.parametrize("weights", [{}, {"web": 1.0, "code": 1.0}])
def test_a_sample_with_a_temperature_takes_its_budget_of_each_language(pieces, weights):
    parts, table = tables(2000, pieces)
    limit = validation_limit(parts, 0.2)
    shares = sample_shares(parts, limit, text_sizes(parts, limit), 20_000, weights, 4.0)
    rows = [row for row in table.to_pylist() if row["validation_hash"] >= limit]
    for pool in weights or [None]:
        in_pool = [row for row in rows if pool in (None, row["source"])]
        totals = {name: sum(row["bytes"] for row in in_pool if row["language"] == name) for name in ("de", "en")}
        whole = 20_000 / max(1, len(weights))
        roots = {name: total**0.25 for name, total in totals.items()}
        for name in ("de", "en"):
            budget = int(whole * roots[name] / sum(roots.values()))
            (hash_, most) = {
                (share.largest_hash, share.most_bytes)
                for share in shares
                if share.language == name and pool in (None, share.source)
            }.pop()
            chosen = [row for row in in_pool if row["language"] == name and row["sample_hash"] <= hash_]
            assert most == budget
            assert budget - 100 < sum(row["bytes"] for row in chosen) <= budget


def test_near_copies_are_held_out_together_and_others_by_their_record_id():
    rows = [{"cluster": bytes([number % 5]) * 16, "source": "web"} for number in range(40)]
    rows += [{"source": "web"}] * 10
    hashes = index(make_documents(rows).batch, 0)["validation_hash"].to_pylist()
    assert [len(set(hashes[start:40:5])) for start in range(5)] == [1] * 5
    assert len(set(hashes)) == 15


def test_no_documents_hold_out_nothing():
    assert validation_limit([tables(0, 1)[1]], 0.5) == 0
