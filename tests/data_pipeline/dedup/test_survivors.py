import random

import pyarrow as pa
import pytest

from data_pipeline.dedup.survivors import KeepOrder, Prefer, Scope, rank, sort_keys
from tests.data_pipeline.conftest import make_documents


def best_first(batch, order):
    table = rank(batch, order).append_column("place", pa.array(range(len(batch))))
    return table.sort_by(sort_keys(table))["place"].to_pylist()


def test_published_comes_before_source_priority_before_preference():
    rows = [
        {"source": "web", "text": "longest of all", "published": False},
        {"source": "books", "text": "short", "published": False},
        {"source": "books", "text": "longer", "published": False},
        {"source": "web", "text": "x", "published": True},
    ]
    order = KeepOrder(source_priority=["books"], prefer=Prefer.longest)
    assert best_first(make_documents(rows), order) == [3, 2, 1, 0]


def test_the_newest_date_is_best_and_none_is_last():
    dates = ["2024-01-02", None, "2024-01-02T10:00:00Z", "2023", "2024-11-30"]
    rows = [{"source": "web", "text": "t", "date": date} for date in dates]
    assert best_first(make_documents(rows), KeepOrder(prefer=Prefer.newest)) == [4, 2, 0, 3, 1]


def test_the_highest_score_is_best_and_none_is_last():
    scores = [0.5, -3.0, None, 1e9, -0.25, 0.0]
    batch = make_documents([{"source": "web", "text": "t"} for _ in scores])
    batch = batch.with_columns({"quality.score": pa.array(scores, pa.float32())})
    assert best_first(batch, KeepOrder(prefer=Prefer.best_score, score="quality.score")) == [3, 0, 5, 4, 1, 2]


@pytest.mark.parametrize(("scope", "groups"), [(Scope.corpus, 1), (Scope.source, 2), (Scope.dump, 3)])
def test_scopes_separate(scope, groups):
    files = ["a/CC-MAIN-2024-10/x.warc", "b/CC-MAIN-2024-10/y.warc", "CC-MAIN-2023-50/z.warc", "other"]
    sources = ["web", "books", "web", "books"]
    rows = [{"source": source, "file": file, "text": "t"} for source, file in zip(sources, files, strict=True)]
    random.Random(0).shuffle(rows)
    scopes = rank(make_documents(rows), KeepOrder(scope=scope))["scope"].to_pylist()
    assert len(set(scopes)) == groups
