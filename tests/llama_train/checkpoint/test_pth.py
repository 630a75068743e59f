import os
import pickle
import zipfile

import pytest
import torch

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.huggingface_files import OutputTensor
from llama_train.checkpoint.pth import PickledTensors, write_pth


class Touch:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.open, (str(self.path), os.O_CREAT)


def test_a_pickle_that_would_run_code_is_refused_with_the_name_of_what_it_calls(tmp_path):
    proof, file = tmp_path / "proof", tmp_path / "consolidated.00.pth"
    torch.save({"a": torch.ones(2), "b": Touch(proof)}, file)
    torch.load(file, weights_only=False)
    assert proof.exists()  # it is dangerous indeed
    proof.unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: names posix\.open, which is no tensor"):
        PickledTensors(file)
    assert not proof.exists()


class Harmless:
    pass


def test_a_class_that_somebody_allowed_torch_to_load_is_refused_all_the_same(tmp_path):
    torch.save({"a": Harmless()}, tmp_path / "x.pth")
    with torch.serialization.safe_globals([Harmless]):
        torch.load(tmp_path / "x.pth", weights_only=True)
        with pytest.raises(CheckpointError, match=r"names test_pth\.Harmless"):
            PickledTensors(tmp_path / "x.pth")


def test_protocol_4_cannot_hide_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Touch(tmp_path / "proof"), protocol=4))
        archive.writestr("x/version", "3\n")
    with pytest.raises(CheckpointError, match="STACK_GLOBAL"):
        PickledTensors(tmp_path / "x.pth")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(1)], "holds a list, not a dictionary"),
        ({"a": 3}, "'a' is a int, not a tensor"),
        ({"a": torch.ones(1).expand(10**9)}, "a: not a contiguous tensor"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, r"names torch\.ComplexFloatStorage"),
    ],
)
def test_what_is_no_dictionary_of_plain_tensors_is_refused(tmp_path, value, message):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        PickledTensors(tmp_path / "x.pth")


def test_truncated_foreign_and_old_files_are_named(tmp_path):
    torch.save({"a": torch.randn(1000)}, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=r"x\.pth: truncated, or not a \.pth file"):
        PickledTensors(tmp_path / "x.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch 1\.6 or later"):
        PickledTensors(tmp_path / "x.pth")


def test_shared_and_offset_storages_and_parameters_are_read_as_torch_reads_them(tmp_path):
    base = torch.randn(6, 5).bfloat16()
    value = {"whole": base, "rows": base[2:4], "parameter": torch.nn.Parameter(torch.randn(3)), "empty": base[:0]}
    torch.save(value, tmp_path / "x.pth")
    file = PickledTensors(tmp_path / "x.pth")
    for name, tensor in value.items():
        assert torch.equal(file.read(name, (0,) * tensor.dim(), tuple(tensor.shape)), tensor)
    assert torch.equal(file.read("rows", (1, 2), (1, 3)), base[3:4, 2:5])


def test_a_streamed_file_is_what_torch_loads(tmp_path):
    tensors = {"a": torch.randn(7, 3).bfloat16(), "b": torch.randn(5), "c": torch.randn(2, 2).double()}

    def output(name, tensor):
        return OutputTensor(name, tensor.dtype, tuple(tensor.shape), lambda: iter(tensor.split(2)))

    counts = []
    write_pth(tmp_path / "x.pth", [output(*item) for item in tensors.items()], counts.append)
    assert sum(counts) == sum(tensor.nbytes for tensor in tensors.values())
    for mapped in (False, True):
        found = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped)
        assert list(found) == list(tensors)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
