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


HEAVY = (
    *("datasets", "jinja2", "matplotlib", "pandas", "pyarrow.parquet", "rich.progress", "sentencepiece"),
    *("tensorboard", "tiktoken", "tokenizers", "torch._inductor.compile_fx", "torch.distributed.checkpoint"),
    *("torch.distributed.pipelining", "torch.utils.tensorboard", "transformers", "triton", "wandb"),
)
"""What takes long to import and no start of a plain run needs."""


def test_a_start_imports_nothing_that_it_does_not_need(tiny):
    code = (
        "import sys\n"
        "import llama_train.train\n"
        "from llama_train.survive import signals\n"
        f"HEAVY = {HEAVY}\n"
        "def started(self):\n"
        "    print([name for name in HEAVY if name in sys.modules], gc.isenabled(), flush=True)\n"
        "    os._exit(0)\n"
        "import gc, os\n"
        "signals.StopRequest.started = started\n"
        "from llama_train.__main__ import main\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", code, *tiny, "logging.console=none"], capture_output=True, text=True)
    assert run.stdout == "[] True\n", run.stderr


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
