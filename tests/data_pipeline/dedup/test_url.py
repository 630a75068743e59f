import pytest

from data_pipeline.dedup import url
from data_pipeline.dedup.url import UrlDedup
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.dedup.conftest import run_stage


@pytest.mark.parametrize("cuts", [[], [1, 2], [3]])
def test_the_newest_version_of_an_address_stays_and_documents_without_one_do(tmp_path, cuts):
    rows = [
        {"url": "http://www.Example.org/page/#top", "date": "2024-01-01", "text": "old"},
        {"url": None, "text": "no address"},
        {"url": "https://example.org/page", "date": "2024-03-01", "text": "new"},
        {"url": "", "text": "empty address"},
        {"url": "https://example.org/page?id=2", "date": "2023-01-01", "text": "other"},
    ]
    kept, statistics = run_stage(tmp_path, url.run, UrlDedup(), make_documents(rows), cuts)
    assert sorted(row["text"] for row in kept) == ["empty address", "new", "no address", "other"]
    assert [row["copies"] for row in kept if row["text"] == "new"] == [2]
    assert statistics[0].reasons() == {"url_dedup.duplicate": [1, 3]}


def test_documents_without_any_address_all_stay(tmp_path):
    kept, _ = run_stage(tmp_path, url.run, UrlDedup(), make_documents([{"text": "a"}, {"text": "a"}]))
    assert len(kept) == 2
