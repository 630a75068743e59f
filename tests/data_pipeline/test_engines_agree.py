"""The same run on every engine, with workers killed in the middle: the shards are the same bytes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from data_pipeline.verify import VerifyConfig, verify
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError, DataError, RunError

WORDS = ["the", "river", "of", "stone", "and", "light", "have", "been", "with", "seen", "by", "many", "people", "year"]
STAGES = "pipeline.stages=[gopher_quality,url_dedup,exact_dedup,minhash_dedup]"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Two sources, with copies of texts, of URLs, and of texts with another word at the end."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(5)
    for name in ("web", "books"):
        rows = []
        for number in range(60):
            text = " ".join(generator.choice(WORDS) + generator.choice("abcdefgh") for _ in range(40))
            rows.append({"text": text, "url": f"http://{name}/{number % 50}", "date": f"2020-01-{1 + number % 28:02d}"})
        rows += [{"text": row["text"]} for row in rows[:7]]
        rows += [{"text": row["text"].rpartition(" ")[0] + " sea"} for row in rows[7:12]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def overrides(directory, output, *more):
    plain = [f"input.paths=[{directory}/*.jsonl]", f"output={output}", STAGES, "pipeline.gopher_quality.min_words=20"]
    return [*plain, "tokenizer.train.vocabulary_size=400", "partition_bytes=3000", *more]


def configured(directory, output, *more):
    return compose("data", DataPipelineConfig, overrides(directory, output, *more))


def files(output):
    """Return {place: bytes} of all that training reads."""
    found = [path for split in ("train", "validation", "tokenizer") for path in (output / split).rglob("*.*")]
    return {
        str(path.relative_to(output)): path.read_bytes() for path in [*found, output / "shards.json"] if path.is_file()
    }


def counts(output):
    stages = json.loads((output / "stats.json").read_text())["stages"]
    for stage in stages:
        del stage["cpu_milliseconds"]
    return stages


@pytest.fixture(scope="module")
def reference(directory, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "out"
    assert run(configured(directory, output, "workers=1", "partition_bytes=1000000")) == 0
    by_stage = {stage["stage"]: stage for stage in counts(output)}
    for name in ("url_dedup", "exact_dedup", "minhash_dedup"):
        assert by_stage[name]["dropped"], f"nothing to find for {name}"
    return output


def start(directory, output, *more):
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "data_pipeline", *overrides(directory, output, "engine=array", "workers=1", *more)]
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def commits(output):
    return {path: path.stat().st_mtime_ns for path in (output / ".work").glob("*/0*.json")}


@pytest.mark.timeout(200)
def test_array_workers_of_which_some_are_killed_write_the_same_bytes(directory, reference, tmp_path):
    output = tmp_path / "out"
    victims = [start(directory, output) for _ in range(2)]
    before = {}
    for victim, least in zip(victims, (8, 30), strict=True):
        deadline = time.monotonic() + 120
        while len(before := commits(output)) < least:
            assert time.monotonic() < deadline, victim.communicate()
            time.sleep(0.02)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    time.sleep(0.5)  # their processes end
    before = commits(output)
    assert not (output / "shards.json").exists()
    late = [start(directory, output) for _ in range(2)]
    told = [worker.communicate(timeout=150) for worker in late]
    assert [worker.returncode for worker in late] == [0, 0], told
    assert files(output) == files(reference)
    assert counts(output) == counts(reference)
    after = commits(output)
    assert {path: after[path] for path in before} == before, "what was committed is not done again"
    assert verify(VerifyConfig(str(output), work=True)) == 0


@pytest.mark.timeout(240)
def test_three_workers_write_the_same_bytes(directory, reference, tmp_path):
    output = tmp_path / "out"
    assert run(configured(directory, output, "workers=3")) == 0
    assert files(output) == files(reference)
    assert counts(output) == counts(reference)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ray_writes_the_same_bytes(directory, reference, tmp_path):
    pytest.importorskip("ray")
    output = tmp_path / "out"
    assert run(configured(directory, output, "engine=ray", "workers=2")) == 0
    assert files(output) == files(reference)
    assert counts(output) == counts(reference)


def test_a_cascade_of_small_fans_writes_the_same_bytes(directory, reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_pipeline.radix.FAN_OUT", 3)
    output = tmp_path / "out"
    assert run(configured(directory, output, "workers=1", "partition_bytes=600")) == 0
    assert len(list((output / ".work").glob("radix-*"))) >= 2
    assert files(output) == files(reference)


def test_other_settings_over_unfinished_work_are_refused_and_overwrite_reuses_what_stays(
    directory, reference, tmp_path
):
    output = tmp_path / "out"
    with pytest.raises(DataError, match="no document was kept"):
        run(configured(directory, output, "workers=1", "pipeline.gopher_quality.min_words=5000"))
    with pytest.raises(ConfigError, match=r"work that was begun differently: pipeline\.gopher_quality\.min_words was "):
        run(configured(directory, output, "workers=1"))
    read = {path: time_ for path, time_ in commits(output).items() if path.parent.name.startswith("read-")}
    assert read
    assert run(configured(directory, output, "workers=1", "overwrite=true")) == 0
    assert commits(output).items() >= read.items()
    assert files(output) == files(reference)


def test_an_array_worker_with_other_settings_cannot_join(directory, tmp_path):
    output = tmp_path / "out"
    first = start(directory, output)
    try:
        deadline = time.monotonic() + 100
        while len(commits(output)) < 2:
            assert time.monotonic() < deadline, first.communicate()
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        join = ["engine=array", "workers=1"]
        with pytest.raises(ConfigError, match=r"other workers are at work .*: seed was 0, is 3\."):
            run(configured(directory, output, *join, "seed=3", "overwrite=true"))
        with pytest.raises(ConfigError, match=r"partition_bytes was 3000, is 4000"):
            run(configured(directory, output, *join, "partition_bytes=4000"))
        with pytest.raises(RunError, match="in use by another llama-data"):
            run(configured(directory, output, "workers=1"))
    finally:
        first.kill()
        first.communicate()


def test_an_output_that_cannot_be_written_is_an_error_that_names_it(directory, tmp_path):
    with pytest.raises(RunError, match=r"output=/proc/out cannot be written"):
        run(configured(directory, "/proc/out", "workers=1"))


LIMITED = """
import resource, signal, sys
from data_pipeline.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.exit(main())
"""


def test_a_disk_that_refuses_to_write_is_an_error_and_the_next_run_goes_on(directory, reference, tmp_path):
    output = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for limit, finished in ("500", False), ("12000", True):  # not even the settings; a part of the blocks
        command = [sys.executable, "-c", LIMITED, limit, *overrides(directory, output, "workers=1")]
        refused = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert refused.returncode == 3, refused.stderr
        assert re.search(r"error: .*File too large.*run the same command again", refused.stderr)
        assert "Traceback" not in refused.stderr
        assert bool(commits(output)) is finished
    before = commits(output)
    assert before
    killed = output / ".work" / "write-0" / ".000000-ab.17.partial"  # what kill -9 leaves in the middle of a shard
    killed.mkdir(parents=True)
    (killed / "shard-00000.bin").touch()
    (next((output / ".work").glob("read-*")) / ".000000.arrow.17-ab.partial").touch()
    assert run(configured(directory, output, "workers=1")) == 0
    assert not list((output / ".work").rglob("*.partial"))
    assert commits(output).items() >= before.items()
    assert files(output) == files(reference)
