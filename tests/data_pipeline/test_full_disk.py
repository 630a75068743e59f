"""A run of `llama-data` whose output lies on a file system that is too small; needs the right to mount one."""

import json
import random
import subprocess

import pytest

from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from llama_foundation.compose import compose
from llama_foundation.errors import RunError


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_is_an_error_and_a_larger_one_is_filled_with_the_same_shards(disk, tmp_path):
    generator = random.Random(0)
    rows = [json.dumps({"text": generator.randbytes(600).hex()}) for _ in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))

    def configured(output) -> DataPipelineConfig:
        plain = [f"input.paths=[{tmp_path}/a.jsonl]", f"output={output}", "workers=1", "input.source=a"]
        plain += ["pipeline.stages=[exact_dedup]", "tokenizer.train.vocabulary_size=300", "partition_bytes=100000"]
        return compose("data", DataPipelineConfig, plain)

    with pytest.raises(RunError, match="No space left on device"):
        run(configured(disk / "out"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert run(configured(disk / "out")) == 0
    assert run(configured(tmp_path / "out")) == 0
    assert (disk / "out" / "shards.json").read_bytes() == (tmp_path / "out" / "shards.json").read_bytes()
