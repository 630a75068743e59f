import json
import shutil

import pytest
import torch
from checkpoint_helpers import run_ranks
from safetensors.torch import load_file, save_file

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.huggingface_config import to_huggingface
from llama_train.checkpoint.huggingface_files import HuggingFaceDirectory, OutputTensor, plan_shards, write_safetensors
from llama_train.config import ModelConfig

TINY = ModelConfig(name="hf", vocab_size=40, hidden_size=16, layers=1, heads=2, kv_heads=1, ffn_size=24, context=32)
NORM = "model.norm.weight"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(to_huggingface(TINY, "float32", 1, 2)))
    save_file({NORM: torch.arange(16.0), "lm_head.weight": torch.randn(40, 16)}, tmp_path / "hf/model.safetensors")
    return tmp_path


def test_written_safetensors_are_what_the_library_reads(tmp_path):
    tensors = {
        "a": torch.randn(5, 3),
        "b": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 2, 2, dtype=torch.float64),
        "d": torch.zeros(0, 4).half(),
    }
    output = [OutputTensor(n, t.dtype, tuple(t.shape), lambda t=t: iter(t.split(2))) for n, t in tensors.items()]
    wrote = []
    write_safetensors(tmp_path / "x.safetensors", output, wrote.append)
    found = load_file(tmp_path / "x.safetensors")
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert sum(wrote) == 5 * 3 * 4 + 7 * 2 + 8 * 8


def test_shards_are_filled_in_order_and_a_large_tensor_is_alone():
    sizes = {"a": 10, "b": 20, "c": 100, "d": 5, "e": 26, "f": 4}
    tensors = [OutputTensor(name, torch.uint8, (size,), iter) for name, size in sizes.items()]
    planned = [[tensor.name for tensor in shard] for shard in plan_shards(tensors, 30)]
    assert planned == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def _opens(rank, world, group, directory):
    found, alone = HuggingFaceDirectory(directory / "hf", group), HuggingFaceDirectory(directory / "hf")
    assert found.tensors == alone.tensors
    assert found.model_config() == TINY
    assert found.read("weights/" + NORM, (4,), (3,)).tolist() == [4, 5, 6]
    with pytest.raises(CheckpointError) as caught:
        HuggingFaceDirectory(directory / "bad", group)
    return caught.value


def test_ranks_open_a_directory_together(directory):
    shutil.copytree(directory / "hf", directory / "bad")
    (directory / "bad" / "model.safetensors").write_bytes(b"x" * 20)
    messages = run_ranks(2, _opens, directory)
    assert messages[0] == messages[1]
    assert "model.safetensors: damaged" in messages[0]
