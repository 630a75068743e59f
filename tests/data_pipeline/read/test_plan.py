import pytest

from data_pipeline.config import InputConfig
from data_pipeline.read.plan import find
from data_pipeline.read.rows import BadRecordError, source_label, source_name
from llama_foundation.errors import DataError


def test_globs_are_expanded_sorted_and_each_file_comes_once(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.parquet", "notes.txt"):
        (tmp_path / name).write_text("")
    paths = [f"{tmp_path}/**/*.jsonl*", f"{tmp_path}/b.jsonl", f"{tmp_path}/**/*.parquet"]
    files = find(InputConfig(paths=paths))
    assert [file.path for file in files] == [
        f"{tmp_path}/{name}" for name in ("a.jsonl.gz", "b.jsonl", "deep/c.parquet")
    ]
    assert [file.source for file in files] == ["a", "b", "c"]
    assert {file.source for file in find(InputConfig(paths=paths, source="web/2024"))} == {"web+2F2024"}


def test_a_name_with_glob_characters_is_a_file_first(tmp_path):
    (tmp_path / "a[1].jsonl").write_text("")
    assert len(find(InputConfig(paths=[f"{tmp_path}/a[1].jsonl"]))) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing-*.jsonl", "no file matches .*missing-"), (".", r"is a directory: write .*\*\*/\*\.jsonl")],
)
def test_a_glob_without_files_is_an_error_that_names_it(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        find(InputConfig(paths=[f"{tmp_path}/{name}"]))


@pytest.mark.parametrize("name", ["a.txt", "a", "a.parquet.gz", "a.csv.zst"])
def test_an_unknown_format_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=f"{name}: cannot read"):
        find(InputConfig(paths=[f"{tmp_path}/{name}"]))


def test_source_names_are_plain_and_stay_different():
    assert source_name("wiki-en_2.0") == "wiki-en_2.0"
    raw = ["a/b", "a+2Fb", "a b", "..", ".a", "_a", "s+a", "s++2Ea", "~", "中", "../x", "é", "e\u0301", "-a", "a", "A"]
    names = [source_name(each) for each in raw]
    assert [source_label(name) for name in names] == raw
    for name in names:
        assert name[0].isalnum()
        assert name.isascii()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._")
    with pytest.raises(BadRecordError):
        source_name("x" * 121)
