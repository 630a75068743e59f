import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import ModelConfig
from llama_train.engine.engine import Chunk
from llama_train.export import ConvertConfig, Target, main, run
from llama_train.model.names import parameter_shapes

TINY = ModelConfig(name="tiny", vocab_size=40, hidden_size=16, layers=1, heads=2, kv_heads=1, ffn_size=24, context=32)


@pytest.fixture
def checkpoint(tmp_path):
    chunks = [Chunk("weights/" + n, s, (0,) * len(s), torch.randn(s)) for n, s in parameter_shapes(TINY).items()]
    CheckpointStore(tmp_path / "run/checkpoints").save(2, chunks, {"model": dataclasses.asdict(TINY)})
    return tmp_path / "run"


def convert(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "llama_train.export", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_command_converts_there_and_back(checkpoint, tmp_path):
    there = convert(f"input={checkpoint}", "to=huggingface", f"output={tmp_path / 'hf'}", "max_shard_bytes=2000")
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout.startswith(f"{checkpoint}/checkpoints/step-00000002 -> {tmp_path}/hf (huggingface, ")
    assert (tmp_path / "hf/model.safetensors.index.json").is_file()
    run(ConvertConfig(input=str(tmp_path / "hf"), to=Target.native, output=str(tmp_path / "native"), dtype="float64"))
    before, after = open_checkpoint(checkpoint), open_checkpoint(tmp_path / "native")
    assert after.model_config() == dataclasses.replace(TINY, name="hf")
    for name, entry in after.tensors.items():
        whole = (name, (0,) * len(entry.shape), entry.shape)
        assert torch.equal(after.read(*whole), before.read(*whole).double())
    assert sorted(os.listdir(tmp_path)) == ["hf", "native", "run"]


def test_the_command_writes_metas_files_and_reads_them(checkpoint, tmp_path):
    run(ConvertConfig(input=str(checkpoint), to=Target.meta, output=str(tmp_path / "meta")))
    assert sorted(os.listdir(tmp_path / "meta")) == ["consolidated.00.pth", "params.json"]
    config = ConvertConfig(input=str(tmp_path / "meta"), to=Target.huggingface, output=str(tmp_path / "hf"), context=32)
    run(config)
    assert (tmp_path / "hf/README.md").read_text().startswith("# meta\n")
    run(ConvertConfig(input=str(tmp_path / "hf"), to=Target.native, output=str(tmp_path / "native")))
    before, after = open_checkpoint(checkpoint), open_checkpoint(tmp_path / "native")
    assert after.model_config() == dataclasses.replace(TINY, name="hf")
    for name, entry in after.tensors.items():
        whole = (name, (0,) * len(entry.shape), entry.shape)
        assert torch.equal(after.read(*whole), before.read(*whole))


def test_the_command_says_in_one_line_what_is_wrong(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    arguments = [f"input={checkpoint}", "to=huggingface", f"output={tmp_path / 'full'}"]
    monkeypatch.setattr(sys, "argv", ["llama-convert", *arguments])
    assert main() == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == f"error: output={tmp_path}/full already exists and is not empty; give another or remove it\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["to=onnx"], "to=onnx"),
        (["to=native", "dtype=int8"], "dtype=int8; use one of float32, bfloat16"),
        (["to=native", "max_shard_bytes=0"], "max_shard_bytes=0 must be at least 1"),
        (["to=native", "max_shard=5"], "max_shard"),
        (["to=meta", "model_parallel=0"], "model_parallel=0 must be at least 1"),
        (["to=native", "context=0"], "context=0 must be at least 1"),
        (["to=native"], "output"),
    ],
)
def test_settings_are_checked(overrides, message):
    given = [] if overrides == ["to=native"] else ["output=x"]
    with pytest.raises(ConfigError, match=message):
        compose.compose("convert", ConvertConfig, ["input=x", *given, *overrides])
