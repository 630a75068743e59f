"""llama-data status and verify, on the output of a small run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from data_pipeline.status import look
from data_pipeline.verify import VerifyConfig, verify
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError, DataError


def configured(directory, output, *more):
    settings = [
        f"input.paths=[{directory}/*.jsonl]",
        f"output={output}",
        "workers=1",
        "pipeline.gopher_quality.min_words=5",
        "pipeline.stages=[gopher_quality,gopher_repetition,exact_dedup]",
    ]
    return compose(
        "data", DataPipelineConfig, [*settings, "tokenizer.train.vocabulary_size=300", "partition_bytes=2000", *more]
    )


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "in").mkdir()
    rows = [{"text": f"the story of number {n} and of {n * n} have been told with many words by us"} for n in range(99)]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in"


@pytest.fixture
def output(directory, tmp_path):
    assert run(configured(directory, tmp_path / "out")) == 0
    return tmp_path / "out"


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["llama-data", *arguments])
    return main()


def test_status_of_a_finished_run_counts_its_partitions(output, monkeypatch, capsys):
    capsys.readouterr()
    assert command(monkeypatch, "status", f"output={output}", "json=true") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"] is True
    assert found["running"] is False
    assert found["not_begun"] == []
    names = [phase["name"] for phase in found["phases"]]
    assert names[:2] == ["survey", "read"]
    assert "gopher_quality+gopher_repetition" in names
    assert names[-1] == "finish"
    for phase in found["phases"]:
        folder = output / ".work" / phase["folder"]
        assert phase["done"] == phase["tasks"] == len(list(folder.glob("0*.json")))
        assert phase["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        assert phase["holders"] == {}
    assert found["shard_bytes"] == sum(path.stat().st_size for path in output.glob("[tv]*/a/*"))


def test_status_of_an_unfinished_run_says_what_is_missing_who_holds_it_and_what_failed(output, monkeypatch, capsys):
    (output / "shards.json").unlink()
    for stage in ("encode", "write", "radix", "finish"):
        for folder in (output / ".work").glob(f"{stage}-*"):
            for path in sorted(folder.glob("*"))[:: -1 if stage == "encode" else 1]:
                if stage != "encode" or path.name.startswith("000001"):
                    path.unlink()
    for folder in [*(output / ".work").glob("write-*"), *(output / ".work").glob("finish-*")]:
        (folder / ".phase").unlink(missing_ok=True)
        folder.rmdir()
    encode = next((output / ".work").glob("encode-*"))
    (encode / "000001.lease").write_text('{"host": "node7", "process": 4711}')
    (encode / "000000.lease").write_text('{"host": "node8", "process": 1}')  # of a task that has its commit already
    (encode / "000001.failed").write_text('{"attempt": "a", "kind": "RunError", "message": "no space", "label": "x"}')
    capsys.readouterr()
    assert command(monkeypatch, "status", f"output={output}") == 0
    told = capsys.readouterr().out
    assert "node7:4711 (1)" in told
    assert "node8" not in told
    assert "failed: no space" in told
    assert "not begun: shards" in told
    assert "workers hold leases" in told
    phase = {phase.name: phase for phase in look(output).phases}["encode"]
    assert phase.tasks - phase.done == 1
    assert max(map(len, told.splitlines())) <= 80


def test_status_knows_the_leftovers_of_other_settings(directory, output):
    assert look(output).leftover_bytes == 0
    assert run(configured(directory, output, "pipeline.gopher_quality.min_words=6", "overwrite=true")) == 0
    found = look(output)
    assert found.leftover_bytes > 0
    assert [phase.name for phase in found.phases].count("encode") == 1
    assert "read" in [phase.name for phase in found.phases], "used again"


def test_status_of_something_else_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no work of llama-data"):
        look(tmp_path)


def test_verify_finds_nothing_on_a_whole_output(output, monkeypatch, capsys):
    assert command(monkeypatch, "verify", f"output={output}", "work=true") == 0
    assert "every block is as it was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "place", ["train/a/shard-00000.bin", "train/a/shard-00000.idx", "train/a/shard-00000.provenance.parquet"]
)
def test_verify_names_the_damaged_shard_file_and_exits_with_1(output, monkeypatch, capsys, place):
    flip(output / place)
    assert command(monkeypatch, "verify", f"output={output}") == 1
    assert str(output / place) in capsys.readouterr().err


def test_verify_checks_the_work_when_asked(output, monkeypatch, capsys):
    block = next((output / ".work").glob("read-*/*.arrow"))
    flip(block)
    assert command(monkeypatch, "verify", f"output={output}") == 0
    assert command(monkeypatch, "verify", f"output={output}", "work=true") == 1
    assert str(block) in capsys.readouterr().err
    (next((output / ".work").glob("plan-*")) / "000000.json").write_text("{")
    assert verify(VerifyConfig(str(output), work=True)) == 1
    assert "cannot be read as a commit" in capsys.readouterr().err


def test_verify_of_an_unfinished_run_points_to_status_or_checks_the_work(output, capsys):
    (output / "shards.json").unlink()
    with pytest.raises(ConfigError, match="llama-data did not finish there"):
        verify(VerifyConfig(str(output)))
    assert verify(VerifyConfig(str(output), work=True)) == 0
    assert "not finished" in capsys.readouterr().out


def test_a_damaged_block_stops_a_run_by_name_and_is_made_again_once_it_is_deleted(directory, output):
    (output / "shards.json").unlink()
    reference = (output / "train/a/shard-00000.bin").read_bytes()
    (block,) = (output / ".work").glob("index-*/000000.arrow")
    for phase in ("plan", "sample", "encode", "write"):
        for path in (output / ".work").glob(f"{phase}-*/0*.json"):
            path.unlink()
    flip(block)
    with pytest.raises(DataError, match=r"000000\.arrow is missing or damaged"):
        run(configured(directory, output))
    block.unlink()
    assert run(configured(directory, output)) == 0
    assert (output / "train/a/shard-00000.bin").read_bytes() == reference


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_installed_command_reaches_them(output):
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    shown = subprocess.run(
        [sys.executable, "-m", "data_pipeline", "status", f"output={output}"],
        env=environment,
        cwd=output,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert "finished" in shown.stdout
