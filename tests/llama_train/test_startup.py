"""Commands answer without torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "entry",
    [
        "llama_train.__main__",
        "llama_train.prove.__main__",
        "llama_train.inspect",
        "llama_train.generate",
        "llama_train.export",
    ],
)
def test_a_command_is_imported_without_torch(entry):
    run = subprocess.run(
        [sys.executable, "-c", f"import sys, {entry}; print('torch' in sys.modules)"], capture_output=True
    )
    assert run.stdout == b"False\n", run.stderr


def test_a_model_on_the_meta_device_does_not_import_the_compiler():
    code = (
        "import sys, torch\n"
        "from llama_train.config import ModelConfig\n"
        "from llama_train.model.llama import Llama\n"
        "with torch.device('meta'):\n"
        "    Llama(ModelConfig('t', 101, 32, 1, 4, 2, 48, 64)).to(torch.float64)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert run.stdout == b"False\n", run.stderr


def test_float8_on_this_machine_is_refused_before_anything_starts(tiny, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = subprocess.run(
        [sys.executable, "-m", "llama_train", *tiny, "engine.float8=tensorwise", "engine.precision=bf16"],
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "error: engine.float8=tensorwise needs a CUDA device of compute capability 9.0" in run.stderr
    assert not (tmp_path / "run").exists()
