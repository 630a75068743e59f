"""Models that somebody else has written: Hugging Face's, Meta's and DeepSpeed's files, and our own small ones."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_pipeline.filters.linear import QUANTILES, Features, LinearModel, load_model, save_model
from llama_foundation.errors import CheckpointError, DataError
from llama_train.checkpoint.huggingface_config import to_huggingface
from llama_train.checkpoint.huggingface_tokenizer import special_tokens
from llama_train.checkpoint.load import fill_model, open_weights
from llama_train.checkpoint.pth import PickledTensors, pickled_number
from llama_train.config import ModelConfig
from llama_train.model.names import parameter_shapes
from tests.faults.fuzzing import FEW, bounded_memory, changed, changed_bytes, refusal
from tests.llama_train.checkpoint import test_deepspeed_files as deepspeed

__all__ = ["bounded_memory"]

pytestmark = pytest.mark.usefixtures("bounded_memory")

MODEL = ModelConfig("x", vocab_size=11, hidden_size=6, layers=1, heads=3, kv_heads=1, ffn_size=5, context=16)


def read_all(directory: Path) -> None:
    """What every command does with foreign weights: open them, ask for the model, fill it."""
    source = open_weights(directory)
    fill_model(source, source.model_config(), "cpu", torch.float32)
    source.tokenizer_files()


def check(directory: Path) -> None:
    error = refusal(CheckpointError, lambda: read_all(directory))
    assert error is None or str(directory) in error


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("huggingface")
    tensors = {name: torch.ones(shape) for name, shape in parameter_shapes(MODEL).items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(to_huggingface(MODEL, "float32", 1, 2)))
    return directory


@FEW
@given(data=st.data())
def test_a_safetensors_file(huggingface: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(huggingface, tmp_path, dirs_exist_ok=True)
    content = (huggingface / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    match data.draw(st.integers(0, 2)):
        case 0:
            content = data.draw(changed_bytes(content))
        case 1:  # a header as long as it likes to say
            content = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1]))) + content[8:]
        case _:
            header = json.dumps(data.draw(changed(json.loads(content[8 : 8 + size])))).encode()
            content = struct.pack("<Q", len(header)) + header + content[8 + size :]
    (tmp_path / "model.safetensors").write_bytes(content)
    check(tmp_path)


@FEW
@given(data=st.data())
def test_the_json_of_a_hugging_face_model(huggingface: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(huggingface, tmp_path, dirs_exist_ok=True)
    index = {"weight_map": dict.fromkeys(parameter_shapes(MODEL), "model.safetensors")}
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = to_huggingface(MODEL, "float32", 1, 2) | {
        "rope_scaling": scaling | {"original_max_position_embeddings": 16}
    }
    name = data.draw(st.sampled_from(["config.json", "model.safetensors.index.json"]))
    value = data.draw(changed(config if name == "config.json" else index))
    (tmp_path / name).write_text(json.dumps(value))
    check(tmp_path)


@FEW
@given(data=st.data())
def test_the_settings_of_a_hugging_face_tokenizer(tmp_path: Path, data: st.DataObject) -> None:
    tokenizer = {"model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1}, "merges": []}, "version": "1.0"}
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    files = {name: tmp_path / name for name in ("tokenizer.json", "tokenizer_config.json")}
    changed_one = data.draw(st.sampled_from(sorted(files)))
    for (name, path), value in zip(files.items(), (tokenizer, settings), strict=True):
        path.write_text(json.dumps(data.draw(changed(value)) if name == changed_one else value))
    error = refusal(DataError, lambda: special_tokens(files))
    assert error is None or str(tmp_path) in error


def zipped(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Write the archive of a .pth file anew with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def change_archive(path: Path, data: st.DataObject) -> None:
    """Change the bytes of the whole file, or those of one entry of the archive, or its numbers and names."""
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
        return

    def change(entries: dict[str, bytes]) -> None:
        name = data.draw(st.sampled_from(sorted(entries)))
        match data.draw(st.integers(0, 3)):
            case 0:
                entries[data.draw(st.sampled_from(["../../x", "/x", "x/data.pkl", "y"]))] = entries.pop(name)
            case 1:
                del entries[name]
            case _:
                entries[name] = data.draw(changed_bytes(entries[name]))

    zipped(path, change)


@FEW
@given(data=st.data())
def test_a_pth_file(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "consolidated.00.pth"
    base = torch.arange(30, dtype=torch.float32).view(6, 5)
    tensors = {"whole": base, "rows": base[2:4], "parameter": torch.nn.Parameter(torch.ones(3)), "empty": base[:0]}
    torch.save(tensors, path)
    change_archive(path, data)

    def read_it() -> None:
        file = PickledTensors(path)
        for name, entry in file.tensors.items():
            assert file.read(name, (0,) * len(entry.shape), entry.shape).shape == entry.shape

    error = refusal(CheckpointError, read_it)
    assert error is None or str(path) in error
    torch.save(torch.tensor(7.0) if data.draw(st.booleans()) else 7, path)
    change_archive(path, data)
    error = refusal(CheckpointError, lambda: pickled_number(path))
    assert error is None or str(path) in error


@FEW
@given(data=st.data())
def test_numbers_in_the_pickle_of_a_pth_file(tmp_path: Path, data: st.DataObject) -> None:
    """Sizes, strides and offsets that no writer gives: what is read lies in the tensor's own storage."""
    path = tmp_path / "x.pth"
    sizes = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 2**64]))
    shape = tuple(data.draw(st.lists(sizes, max_size=3)))
    stride = tuple(data.draw(st.lists(sizes, min_size=len(shape), max_size=len(shape))))
    offset, count = data.draw(sizes), data.draw(sizes)
    write_tensor(path, shape, stride, offset, count)
    found = []

    def read_it() -> None:
        file = PickledTensors(path)
        found.append(file.read("x", (0,) * len(file.tensors["x"].shape), file.tensors["x"].shape))

    error = refusal(CheckpointError, read_it)
    assert error is None or str(path) in error
    for tensor in found:
        assert set(tensor.flatten().tolist()) <= {7.0}, "bytes of another storage"


def write_tensor(path: Path, shape: Any, stride: Any, offset: int, count: int) -> None:
    """Write a .pth file of one tensor `x` over a storage of 8 sevens, with these numbers, and another storage."""
    torch.save({"x": torch.full((8,), 7.0), "y": torch.full((64,), -1.0)}, path)

    def integer(value: int) -> bytes:  # LONG1
        content = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(content)]) + content

    def numbers(values: Any) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    pickled = b"\x80\x02}(X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(count) + b"tQ"
    pickled += integer(offset) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtRu."
    zipped(path, lambda entries: entries.update({"x/data.pkl": pickled}))


def test_the_pickle_that_is_made_by_hand_is_one_that_torch_reads(tmp_path: Path) -> None:
    write_tensor(tmp_path / "x.pth", (2, 3), (3, 1), 2, 8)
    assert torch.load(tmp_path / "x.pth", weights_only=True)["x"].equal(torch.full((2, 3), 7.0))
    file = PickledTensors(tmp_path / "x.pth")
    assert file.read("x", (0, 0), (2, 3)).equal(torch.full((2, 3), 7.0))


@FEW
@given(data=st.data())
def test_metas_files(tmp_path: Path, data: st.DataObject) -> None:
    params = {"dim": 6, "n_layers": 1, "n_heads": 3, "n_kv_heads": 1, "norm_eps": 1e-5, "multiple_of": 5}
    params |= {"vocab_size": 11, "use_scaled_rope": True, "rope_theta": 5e5, "ffn_dim_multiplier": 1.0}
    width, head = 20, 2
    shapes = {"attention.wq": (6, 6), "attention.wk": (head, 6), "attention.wv": (head, 6), "attention.wo": (6, 6)}
    shapes |= {"feed_forward.w1": (width, 6), "feed_forward.w2": (6, width), "feed_forward.w3": (width, 6)}
    tensors = {f"layers.0.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    tensors |= {f"layers.0.{name}.weight": torch.ones(6) for name in ("attention_norm", "ffn_norm")}
    tensors |= {"tok_embeddings.weight": torch.ones(11, 6), "output.weight": torch.zeros(11, 6)}
    tensors |= {"norm.weight": torch.ones(6)}
    path = tmp_path / "consolidated.00.pth"
    kind = data.draw(st.integers(0, 3))
    (tmp_path / "params.json").write_text(json.dumps(data.draw(changed(params)) if kind == 0 else params))
    torch.save(data.draw(changed(tensors)) if kind == 1 else tensors, path)
    if kind == 2:
        change_archive(path, data)
    if kind == 3:
        read_all(tmp_path)  # what is not changed is read
        return
    check(tmp_path)


@pytest.fixture(scope="module")
def of_deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deepspeed")
    for stage, how in ((2, "in the groups"), (3, "stage 3")):
        deepspeed.write(directory / str(stage), stage, how=how)
        read_all(directory / str(stage))
    return directory


@FEW
@given(data=st.data())
def test_deepspeeds_files(of_deepspeed: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(of_deepspeed / data.draw(st.sampled_from("23")), tmp_path, dirs_exist_ok=True)
    tag = tmp_path / "global_step7"
    path = data.draw(st.sampled_from(sorted(tag.iterdir()) * 2 + [tmp_path / "latest", tmp_path / "config.json"]))
    if path.suffix == ".json":
        path.write_text(json.dumps(data.draw(changed(json.loads(path.read_text())))))
    elif path.name == "latest":
        path.write_text(data.draw(st.sampled_from(["..", "../global_step7", "/etc", "", "x" * 5000, "a\0b", "\n"])))
    elif data.draw(st.integers(0, 2)):
        torch.save(data.draw(changed(torch.load(path, weights_only=True))), path)
    else:
        change_archive(path, data)
    check(tmp_path)


@pytest.fixture(scope="module")
def linear() -> bytes:
    features = Features(bits=4)
    model = LinearModel(features, numpy.ones(16, numpy.float32), 0.5, numpy.zeros(QUANTILES))
    return save_model(model, {"texts": 3})


@FEW
@given(data=st.data())
def test_a_model_of_llama_quality(linear: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path, size = tmp_path / "model.safetensors", int.from_bytes(linear[:8], "little")
    content = linear
    if data.draw(st.booleans()):
        content = data.draw(changed_bytes(linear))
    else:
        header = json.loads(linear[8 : 8 + size])
        if data.draw(st.booleans()):
            about = json.loads(header["__metadata__"]["llama_train"])
            header["__metadata__"]["llama_train"] = json.dumps(data.draw(changed(about)))
        else:
            header = data.draw(changed(header))
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + linear[8 + size :]
    path.write_bytes(content)
    load_model.cache_clear()
    error = refusal(DataError, lambda: load_model(str(path)))
    assert error is None or str(path) in error
