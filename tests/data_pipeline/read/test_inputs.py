import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_whole import pieces_of, problems_of, read_whole

from data_pipeline.config import DataPipelineConfig, InputConfig
from data_pipeline.read import hub
from data_pipeline.read.plan import find
from data_pipeline.read.rows import Rows
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError, DataError, RunError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(path, texts, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **columns}) + "\n" for text in texts))
    return path


def test_a_list_names_files_and_globs_one_per_line(tmp_path):
    for name in ("a.jsonl", "b c.jsonl", "d1.jsonl", "d2.jsonl"):
        write(tmp_path / name, [name])
    (tmp_path / "inputs.txt").write_text(f"{tmp_path}/b c.jsonl\n\n{tmp_path}/d*.jsonl\n")
    config = InputConfig(list=str(tmp_path / "inputs.txt"))
    config.check()
    assert [file.path.removeprefix(f"{tmp_path}/") for file in find(config)] == ["b c.jsonl", "d1.jsonl", "d2.jsonl"]
    (tmp_path / "inputs.txt").write_text(f"{tmp_path}/gone.jsonl\n")
    with pytest.raises(DataError, match=r"input\.list=.*inputs\.txt: no file matches .*gone\.jsonl"):
        find(config)
    with pytest.raises(DataError, match=r"input\.list=nowhere cannot be read"):
        find(InputConfig(list="nowhere"))


def test_two_inputs_with_the_same_name_stay_two_sources(tmp_path):
    write(tmp_path / "2023" / "web" / "part.jsonl", ["same text"])
    write(tmp_path / "2024" / "web" / "part.jsonl", ["same text"])
    write(tmp_path / "2024" / "other.jsonl", ["same text"])
    table, statistics = read_whole(f"{tmp_path}/**/*.jsonl")
    assert table["source"].to_pylist() == ["2023+2Fweb+2Fpart", "other", "2024+2Fweb+2Fpart"]
    assert len(set(table["record_id"].to_pylist())) == 3
    assert {source: row["unknown"][0] for source, row in statistics.kept.items()} == {
        "2023+2Fweb+2Fpart": 1,
        "2024+2Fweb+2Fpart": 1,
        "other": 1,
    }


def test_a_source_setting_joins_them_and_records_still_differ(tmp_path):
    for folder in ("x", "y"):
        write(tmp_path / folder / "part.jsonl", ["same text"])
    table, _ = read_whole(f"{tmp_path}/*/part.jsonl", source="web")
    assert table["source"].to_pylist() == ["web", "web"]
    assert len(set(table["record_id"].to_pylist())) == 2


def test_published_files_are_read_and_marked(tmp_path):
    write(tmp_path / "old.jsonl", ["old"])
    write(tmp_path / "new.jsonl", ["new"])
    table, _ = read_whole(f"{tmp_path}/new.jsonl", published_paths=[f"{tmp_path}/old*.jsonl"])
    marks = dict(zip(table["text"].to_pylist(), table["published"].to_pylist(), strict=True))
    assert marks == {"old": True, "new": False}
    assert table["copies"].to_pylist() == [1, 1]
    assert table["cluster"].null_count == 2


def test_licence_and_opt_out_columns_are_kept(tmp_path):
    write(tmp_path / "a.jsonl", ["text"], license="CC0", noai=True, content_type="text/html")
    (row,) = read_whole(tmp_path / "a.jsonl", opt_out_column="noai")[0].to_pylist()
    assert (row["license"], row["opt_out"], row["content_type"]) == ("CC0", "True", "text/html")


@pytest.mark.parametrize("large", [False, True])
def test_a_saved_data_set_is_read_by_its_arrow_files(tmp_path, large):
    texts = [f"text {number} 三" for number in range(700)]
    kind = datasets.Value("large_string" if large else "string")
    features = datasets.Features({"text": kind, "lang": datasets.Value("string")})
    rows = {"text": texts, "lang": ["en"] * 700}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "wiki", num_shards=3)
    table, _ = read_whole(tmp_path / "wiki", language_column="lang")
    assert table["text"].to_pylist() == texts
    assert set(table["source"].to_pylist()) == {"wiki"}
    assert set(table["language"].to_pylist()) == {"en"}
    assert len(set(table["record_id"].to_pylist())) == 700
    with pytest.raises(DataError, match=r"data-00000.*lack the column 'body'.*text, lang"):
        read_whole(tmp_path / "wiki", text_column="body")


def test_the_splits_of_a_saved_set_are_not_mixed(tmp_path):
    part = datasets.Dataset.from_dict({"text": ["x"]})
    datasets.DatasetDict(train=part, test=part).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="splits test, train; name those to read"):
        find(InputConfig(paths=[str(tmp_path / "set")]))
    assert read_whole(tmp_path / "set" / "train")[0]["source"].to_pylist() == ["train"]


def test_a_broken_arrow_file_keeps_the_batches_before(tmp_path):
    datasets.Dataset.from_dict({"text": ["word " * 50] * 5000}).save_to_disk(tmp_path / "set")
    (path,) = (tmp_path / "set").glob("*.arrow")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    table, statistics = read_whole(tmp_path / "set")
    assert len(table) >= 1000
    assert problems_of(statistics) == {"damaged_file": [len(table)]}


@pytest.fixture
def hub_of_three_shards(monkeypatch):
    calls = []

    def load_dataset(name, config, *, split, revision, streaming):
        calls.append((name, config, split, revision, streaming))
        table = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(10)] + [""]})
        return table.to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def hub_settings(*more):
    return compose("data", DataPipelineConfig, ["output=o", "input.dataset.name=org/set", *more]).input


def test_a_data_set_by_name_is_streamed_at_its_commit_shard_by_shard(hub_of_three_shards):
    settings = hub_settings(f"input.dataset.revision={COMMIT}", "input.dataset.config=en")
    table, statistics = read_whole([], dataset=settings.dataset)
    assert sorted(table["text"].to_pylist()) == sorted(f"row {number}" for number in range(10))
    assert set(table["source"].to_pylist()) == {"org+2Fset"}
    assert len(set(table["record_id"].to_pylist())) == 10
    assert set(table["file"].to_pylist()) == {f"hub:org/set@{COMMIT}/en/train#{shard}-of-3" for shard in range(3)}
    assert list(problems_of(statistics)) == ["empty_text"]
    assert set(hub_of_three_shards) == {("org/set", "en", "train", COMMIT, True)}


@pytest.mark.parametrize("revision", ["null", "main", "v1.0", COMMIT[:12]])
def test_a_data_set_without_a_commit_is_refused(revision):
    with pytest.raises(ConfigError, match=r"input\.dataset\.revision=.*40 hexadecimal digits"):
        hub_settings(f"input.dataset.revision={revision}")


def test_a_hub_that_does_not_answer_is_an_error_that_says_what_was_asked(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = hub_settings(f"input.dataset.revision={COMMIT}")
    with pytest.raises(DataError, match=r"org/set, revision 0123.*ConnectionError: no route"):
        find(settings)


def test_a_hub_that_breaks_off_ends_the_run_with_a_typed_error(hub_of_three_shards, monkeypatch):
    settings = hub_settings(f"input.dataset.revision={COMMIT}")
    pieces = pieces_of(settings, 1000)

    def broken():
        yield {"text": "one"}
        raise TimeoutError("gone")

    class Stream:
        num_shards = 3

        def shard(self, count, index):
            return broken()

    monkeypatch.setattr(hub, "_load", lambda dataset: Stream())
    rows = Rows(pieces[0].file, settings, 0)
    with pytest.raises(RunError, match=r"#0-of-3: TimeoutError: gone; finished partitions are kept"):
        list(hub.read(pieces[0], settings, rows))


@pytest.mark.parametrize(
    "name", ["a,b.jsonl", "a b.jsonl", "a=b.jsonl", "a[1].jsonl", "a{1}.jsonl", "a:b.jsonl", "a'b.jsonl", "ü~(1).jsonl"]
)
def test_paths_that_hydras_grammar_rejects_come_through_in_quotes(tmp_path, name):
    path = write(tmp_path / name, ["found"])
    quoted = str(path).replace("'", "\\'")
    config = compose("data", DataPipelineConfig, [f"input.paths=['{quoted}']", "output=o"])
    assert [file.path for file in find(config.input)] == [str(path)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "warc", "warc.gz", "wet.gz"])
def test_an_empty_file_ends_no_run(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").touch()
    table, statistics = read_whole(tmp_path / f"a.{suffix}")
    assert (len(table), statistics.seen) == (0, {})


def test_a_document_of_10_megabytes_is_read_and_a_larger_value_counted(tmp_path):
    texts = ["short", "x" * 10_000_000, "y" * 3_000_000]
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), tmp_path / "a.parquet")
    assert read_whole(tmp_path / "a.parquet")[0]["text"].to_pylist() == texts
    table, statistics = read_whole(tmp_path / "a.parquet", max_record_bytes=5_000_000)
    assert table["row"].to_pylist() == [0, 2]
    assert problems_of(statistics) == {"record_too_long": [1]}


def test_a_wat_file_in_a_glob_is_left_unread_and_counted_with_its_name(tmp_path):
    write(tmp_path / "a.jsonl", ["text"])
    for name in ("a.warc.wat.gz", "b.wat"):
        (tmp_path / name).write_bytes(b"not even gzip")
    table, statistics = read_whole(f"{tmp_path}/*")
    assert table["text"].to_pylist() == ["text"]
    assert statistics.reasons() == {"read.wat_holds_no_text": [2, 26]}
    told = statistics.examples["read.wat_holds_no_text"]
    assert sorted(each["file"] for each in told) == [f"{tmp_path}/a.warc.wat.gz", f"{tmp_path}/b.wat"]
