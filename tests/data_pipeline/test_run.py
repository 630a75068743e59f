"""The whole command on small corpora, read back byte by byte from the shards."""

import fcntl
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import zstandard

from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from data_pipeline.tokenize import load_tokenizer
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError, DataError, RunError

WORDS = ["the", "river", "of", "stone", "and", "light", "have", "been", "with", "seen", "by", "many", "people", "year"]


def sentence(number, length):
    """A text that passes the quickstart's rules: words in an order of its own."""
    generator = random.Random(number)
    return " ".join(generator.choice(WORDS) + generator.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))


def corpus(directory):
    """Two sources in three files: good documents, duplicates across files and sources, too short ones, bad lines."""
    directory.mkdir(parents=True, exist_ok=True)
    web = [{"text": sentence(i, 30 + i % 40), "language": "de", "url": f"http://w/{i}"} for i in range(60)]
    web[7] = {"text": "too short"}
    books = [{"text": sentence(i, 50), "source": "books", "language": "de"} for i in range(100, 140)]
    books += [{"text": "  " + web[i]["text"].replace(" ", " \t"), "source": "books"} for i in range(10, 20)]
    more = [{"text": web[i]["text"]} for i in range(15, 25)] + [{"text": sentence(i, 60)} for i in range(200, 220)]
    (directory / "web.jsonl").write_text("".join(json.dumps(each) + "\n" for each in web) + "{broken\n")
    data = "".join(json.dumps(each) + "\n" for each in books).encode()
    (directory / "books.jsonl.zst").write_bytes(zstandard.compress(data))
    (directory / "more.jsonl").write_text("\n".join(json.dumps(each) for each in more))
    return directory


def configured(monkeypatch, directory, output, *overrides):
    monkeypatch.chdir(directory)
    settings = ["tokenizer.train.vocabulary_size=400", "workers=1", f"output={output}"]
    return compose("data", DataPipelineConfig, ["input.paths=[*.jsonl*]", *settings, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(corpus, output) of a run with one worker."""
    with pytest.MonkeyPatch.context() as patch:
        directory = corpus(tmp_path_factory.mktemp("corpus"))
        output = tmp_path_factory.mktemp("shards") / "out"
        assert run(configured(patch, directory, output)) == 0
    return directory, output


def documents(output, split, source):
    """Return [(provenance, ids)] read from the bytes of the Megatron files."""
    found = []
    for index_path in sorted((output / split / source).glob("*.idx")):
        data = index_path.read_bytes()
        assert data[:9] == b"MMIDIDX\0\0"
        dtype = {4: np.int32, 8: np.uint16}[data[17]]
        count = int.from_bytes(data[18:26], "little")
        lengths = np.frombuffer(data, np.int32, count, 34)
        tokens = np.fromfile(index_path.with_suffix(".bin"), dtype)
        rows = pq.read_table(index_path.with_suffix(".provenance.parquet")).to_pylist()
        found += zip(rows, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True)
    return found


def everything(output):
    """Return {split/source/file: bytes} of what training reads."""
    files = [path for split in ("train", "validation", "tokenizer") for path in (output / split).rglob("*.*")]
    return {
        str(path.relative_to(output)): path.read_bytes() for path in [*files, output / "shards.json"] if path.is_file()
    }


def test_every_kept_text_comes_back_from_the_shards_once(finished):
    directory, output = finished
    tokenizer = load_tokenizer(output / "tokenizer" / "tokenizer.model")
    expected, languages = {}, {}
    for source, file in (("web", "web.jsonl"), ("more", "more.jsonl")):
        for row, line in enumerate((directory / file).read_text().splitlines()):
            if not line.startswith("{broken"):
                expected[(file, row)] = (source, json.loads(line)["text"])
                languages[(file, row)] = json.loads(line).get("language")
    lines = zstandard.decompress((directory / "books.jsonl.zst").read_bytes()).decode().splitlines()
    expected |= {("books.jsonl.zst", row): ("books", json.loads(line)["text"]) for row, line in enumerate(lines)}
    languages |= {("books.jsonl.zst", row): json.loads(line).get("language") for row, line in enumerate(lines)}
    groups = {}
    for place, (_, text) in expected.items():
        groups.setdefault(" ".join(text.split()), []).append(place)
    del groups["too short"]
    seen = []
    for split in ("train", "validation"):
        for source in os.listdir(output / split):
            for provenance, ids in documents(output, split, source):
                place = (provenance["file"], provenance["row"])
                assert expected[place][0] == source == provenance["source"]
                text = expected[place][1]
                assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
                assert tokenizer.decode(ids[1:-1].tolist()) == text
                assert text.split()[0] in provenance["first_words"]
                assert provenance["language"] == languages[place]
                seen.append(" ".join(text.split()))
    assert sorted(seen) == sorted(groups)


def test_counts_add_up_and_every_loss_has_a_reason(finished):
    _, output = finished
    stages = {each["stage"]: each for each in json.loads((output / "stats.json").read_text())["stages"]}
    # web 10 to 19 are also in books, web 15 to 24 in more: 20 copies too many, of 15 texts
    counted = {}
    for stage in stages.values():
        for row in stage["dropped"].values():
            for reason, tally in row.items():
                counted[reason] = counted.get(reason, 0) + tally[0]
    assert counted == {"read.invalid_json": 1, "gopher_quality.too_few_words": 1, "exact_dedup.duplicate": 20}
    assert stages["exact_dedup"]["cluster_sizes"] == {"2": 10, "3": 5}
    example = stages["read"]["examples"]["read.invalid_json"][0]
    assert (example["file"], example["row"], example["text"]) == ("web.jsonl", 60, "{broken")


def test_the_order_in_the_shards_is_not_the_order_of_the_input(finished):
    _, output = finished
    rows = [provenance["row"] for provenance, _ in documents(output, "train", "web")]
    assert len(rows) > 20
    assert rows != sorted(rows)


@pytest.mark.parametrize("overrides", [["workers=4"], ["partition_bytes=700", "workers=2"], ["partition_bytes=3000"]])
def test_shards_are_byte_identical_for_any_workers_and_partitions(finished, tmp_path, monkeypatch, overrides):
    directory, output = finished
    again = tmp_path / "again"
    monkeypatch.setattr("data_pipeline.phases._SLICE_BYTES", 500)  # of the runs in this process
    assert run(configured(monkeypatch, directory, again, *overrides)) == 0
    assert everything(again) == everything(output)
    first, second = (json.loads((path / "stats.json").read_text()) for path in (output, again))
    for stage in first["stages"] + second["stages"]:
        stage["cpu_milliseconds"] = 0
    assert second["stages"] == first["stages"]
    assert second["settings"] == first["settings"]


def test_source_priority_decides_which_copy_stays(finished, tmp_path, monkeypatch):
    directory, _ = finished
    output = tmp_path / "out"
    run(configured(monkeypatch, directory, output, "pipeline.exact_dedup.source_priority=[books]"))
    kept = [
        row
        for split in ("train", "validation")
        if (output / split / "books").exists()
        for row, _ in documents(output, split, "books")
    ]
    assert len(kept) == 50
    stages = json.loads((output / "stats.json").read_text())["stages"]
    assert "books" not in stages[3]["dropped"]


def test_a_finished_output_is_left_alone(finished, monkeypatch, capsys):
    directory, output = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run(configured(monkeypatch, directory, output, "workers=3", "partition_bytes=1000")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_other_settings_or_inputs_over_a_finished_output_are_refused_by_name(tmp_path, monkeypatch):
    directory, output = corpus(tmp_path / "in"), tmp_path / "out"
    run(configured(monkeypatch, directory, output))
    with pytest.raises(ConfigError, match=r"pipeline\.gopher_quality\.min_words was 20, is 35.*overwrite=true"):
        run(configured(monkeypatch, directory, output, "pipeline.gopher_quality.min_words=35"))
    work = {path: path.stat().st_mtime_ns for path in (output / ".work").glob("read-*/0*")}
    changed = configured(monkeypatch, directory, output, "pipeline.gopher_quality.min_words=35", "overwrite=true")
    assert run(changed) == 0
    assert {path: path.stat().st_mtime_ns for path in (output / ".work").glob("read-*/0*")} == work, "only what follows"
    fresh = tmp_path / "fresh"
    run(configured(monkeypatch, directory, fresh, "pipeline.gopher_quality.min_words=35"))
    assert everything(output) == everything(fresh)
    assert run(configured(monkeypatch, directory, output, "overwrite=true")) == 0, "and back again"
    run(configured(monkeypatch, directory, tmp_path / "first"))
    assert everything(output) == everything(tmp_path / "first")
    with open(directory / "web.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(ConfigError, match=r"web\.jsonl was .*'size'"):
        run(configured(monkeypatch, directory, output))


KILL = """
import os, sys
from pathlib import Path
import data_pipeline.engines.work as work
from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from llama_foundation.compose import compose
publish, left = work.publish_json, [int(sys.argv[1])]
def publish_json(path, value):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), 9)
    publish(path, value)
work.publish_json = publish_json
run(compose("data", DataPipelineConfig, sys.argv[2:]))
"""


@pytest.mark.parametrize("commits", [5, 20, 29])
def test_after_a_kill_only_what_was_not_committed_is_done_again(finished, tmp_path, monkeypatch, commits):
    directory, reference = finished
    output = tmp_path / "out"
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    overrides = ["input.paths=[*.jsonl*]", "tokenizer.train.vocabulary_size=400", "workers=1", f"output={output}"]
    overrides.append("partition_bytes=5000")
    killed = subprocess.run([sys.executable, "-c", KILL, str(commits), *overrides], cwd=directory, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (output / "shards.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (output / ".work").rglob("0*.json")}
    assert len(before) == commits
    assert run(configured(monkeypatch, directory, output, "partition_bytes=5000")) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert everything(output) == everything(reference)


def test_a_second_run_in_the_same_output_is_refused(finished, tmp_path, monkeypatch):
    directory, _ = finished
    (tmp_path / "out" / ".work").mkdir(parents=True)
    with open(tmp_path / "out" / ".work" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by another llama-data"):
            run(configured(monkeypatch, directory, tmp_path / "out"))


def test_a_directory_of_something_else_is_never_touched(finished, tmp_path, monkeypatch):
    directory, _ = finished
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="was not made by llama-data"):
        run(configured(monkeypatch, directory, tmp_path, "overwrite=true"))
    assert (tmp_path / "train" / "mine.txt").read_text() == "mine"


def test_a_column_that_no_row_has_is_an_error_with_file_row_and_column(finished, tmp_path, monkeypatch):
    directory, _ = finished
    with pytest.raises(
        DataError, match=r"books\.jsonl\.zst: row 0 and all others lack the column 'body'.*source, text"
    ):
        run(configured(monkeypatch, directory, tmp_path / "a", "input.text_column=body"))
    with pytest.raises(DataError, match=r"input\.language_column=lagn: no row of any file has this column.*text"):
        run(configured(monkeypatch, directory, tmp_path / "b", "input.language_column=lagn"))


def test_nothing_kept_says_why_and_leaves_the_report(finished, tmp_path, monkeypatch):
    directory, _ = finished
    output = tmp_path / "out"
    with pytest.raises(DataError, match=r"no document was kept: gopher_quality\.too_few_words 140.*report\.html"):
        run(configured(monkeypatch, directory, output, "pipeline.gopher_quality.min_words=500"))
    assert (output / "report.html").exists()
    assert not (output / "shards.json").exists()


def test_files_without_a_record_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="hold no records"):
        run(configured(monkeypatch, tmp_path, tmp_path / "out"))


def test_the_command_prints_its_funnel_and_its_paths(finished, tmp_path):
    directory, reference = finished
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    arguments = ["input.paths=[*.jsonl*]", "tokenizer.train.vocabulary_size=400", f"output={tmp_path}/out", "workers=2"]
    command = [sys.executable, "-m", "data_pipeline", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"exact_dedup .*20 .*duplicate 20", done.stdout)
    assert f"{tmp_path}/out/shards.json" in done.stdout
    assert everything(tmp_path / "out") == everything(reference)
    failed = subprocess.run([*command[:3], "output=x"], cwd=directory, env=environment, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: input.paths is empty")
    shown = subprocess.run([*command, "--cfg", "job"], cwd=directory, env=environment, capture_output=True, text=True)
    assert "min_words: 20" in shown.stdout
    assert sorted(path.name for path in directory.iterdir()) == ["books.jsonl.zst", "more.jsonl", "web.jsonl"]


def test_a_byte_level_tokenizer_is_trained_on_sources_by_weight(monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    directory, output = corpus(tmp_path / "in"), tmp_path / "out"
    train = ["tokenizer=bpe_128k", "tokenizer.train.vocabulary_size=600", "tokenizer.train.sample_bytes=3000"]
    weights = "tokenizer.train.source_weights={books: 3.0, web: 1.0}"
    assert run(configured(monkeypatch, directory, output, *train, weights)) == 0
    (sampled,) = (output / ".work").glob("sample-*")
    texts = [
        text
        for path in sorted(sampled.glob("*.arrow"))
        for text in pa.ipc.open_stream(path.read_bytes()).read_all()["text"].to_pylist()
    ]
    lines = zstandard.decompress((directory / "books.jsonl.zst").read_bytes()).splitlines()
    of_books = {json.loads(line)["text"] for line in lines}
    books = sum(len(text.encode()) for text in texts if text in of_books)
    assert 1500 < books <= 2250
    assert 250 < sum(len(text.encode()) for text in texts) - books <= 750
    tokenizer = load_tokenizer(output / "tokenizer")
    assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.eos_id) == (600, 344, 345)
    check_decoded(output, tokenizer)


def test_a_tokenizer_json_is_used_and_kept_under_its_name(monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    directory, output = corpus(tmp_path / "in"), tmp_path / "out"
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.ByteLevel(), tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator(WORDS, trainer)
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.chdir(directory)
    file = ["tokenizer=file", f"tokenizer.path={tmp_path}/tokenizer.json"]
    assert run(compose("data", DataPipelineConfig, ["input.paths=[*.jsonl*]", f"output={output}", *file])) == 0
    assert [path.name for path in (output / "tokenizer").iterdir()] == ["tokenizer.json"]
    assert json.loads((output / "shards.json").read_text())["tokenizer"]["file"] == "tokenizer/tokenizer.json"
    check_decoded(output, load_tokenizer(output / "tokenizer"))


def check_decoded(output, tokenizer):
    found = documents(output, "train", "books")
    assert len(found) > 30
    for provenance, ids in found:
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.decode(ids).split()[:5] == provenance["first_words"].split()[:5]
