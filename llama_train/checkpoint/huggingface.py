"""Converting between checkpoints and Hugging Face directories, a piece of a tensor at a time.

The names are the same, so nothing is computed: rectangles are copied, and rounded if another dtype is asked for.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llama_foundation.errors import CheckpointError, DataError
from llama_foundation.files import fsync_directory, publish_directory
from llama_train.checkpoint.deepspeed_files import DeepSpeedDirectory
from llama_train.checkpoint.huggingface_config import MAX_SHARD_BYTES, to_huggingface
from llama_train.checkpoint.huggingface_files import CONFIG, OutputTensor, plan_shards, write_json, write_shards
from llama_train.checkpoint.huggingface_tokenizer import (
    SpecialTokens,
    build_tokenizer,
    json_settings,
    special_tokens,
    tokenizer_settings,
)
from llama_train.checkpoint.index import step_name
from llama_train.checkpoint.restore import WEIGHTS, WeightSource, check_same_tensors, pieces
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import ModelConfig
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes

Progress = Callable[[int], None]
"""Called with a number of bytes, of the tensors as written, each time that many are written."""

_log = logging.getLogger(__name__)


def export_huggingface(
    source: WeightSource,
    output: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    wrote: Progress = lambda _: None,
    readme: str | None = None,
) -> Path:
    """Write the weights of `source` as a Hugging Face directory, which appears whole.

    Args:
        dtype: of the weights; None: as they are.
        max_shard_bytes: of one safetensors file; a single larger tensor has a larger file.
        readme: the model card; None: none.

    Raises:
        CheckpointError: `source` does not fit its own model, or cannot be read; `output` is not empty.
    """
    config = checked_config(source)
    names = list(parameter_shapes(config))
    tensors = [_output(source, name, dtype) for name in names]
    with appearing(output) as partial:
        write_shards(partial, plan_shards(tensors, max_shard_bytes), wrote)
        special = _write_tokenizer(source, config, partial)
        stored = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
        written = stored.pop() if len(stored) == 1 else "float32"
        write_json(partial / CONFIG, to_huggingface(config, written, special.bos, special.eos))
        generation = {"bos_token_id": special.bos, "eos_token_id": special.generation_eos(), "do_sample": True}
        write_json(partial / "generation_config.json", generation)
        if readme is not None:
            (partial / "README.md").write_text(readme, encoding="utf-8")
    return output


def import_native(
    source: WeightSource, output: Path, dtype: torch.dtype | None = None, wrote: Progress = lambda _: None
) -> Path:
    """Write the weights of `source` as a checkpoint of step 0; `output` is its directory.

    AdamW's state comes along where `source` is DeepSpeed's and has it, and `dtype` leaves the weights in float32.

    Raises:
        CheckpointError: as for `export_huggingface`.
    """
    config = checked_config(source)
    names = [WEIGHTS + name for name in parameter_shapes(config)]
    state: dict[str, Any] = {"step": 0, "model": dataclasses.asdict(config)}
    if isinstance(source, DeepSpeedDirectory) and source.adamw_step is not None and dtype in (None, torch.float32):
        names += [name for name in source.tensors if not name.startswith(WEIGHTS)]
        state["engine"] = {"adamw_step": source.adamw_step}

    def chunks() -> Iterator[Chunk]:
        for name in names:
            entry = source.tensors[name]
            for offsets, lengths in pieces(entry):
                part = source.read(name, offsets, lengths).to(dtype or entry.dtype)
                size = part.nbytes if name.startswith(WEIGHTS) else 0
                yield Chunk(name, entry.shape, offsets, part)
                del part  # before the next one is read
                wrote(size)

    with appearing(output) as partial:
        tokenizer = {f"tokenizer/{name}": path for name, path in source.tokenizer_files().items()}
        CheckpointStore(partial).save(0, chunks(), state, tokenizer)
        for path in (partial / step_name(0)).iterdir():
            os.rename(path, partial / path.name)
        (partial / step_name(0)).rmdir()
    return output


def weight_bytes(source: WeightSource, dtype: torch.dtype | None) -> int:
    """Return how many bytes of weights a conversion of `source` to `dtype` writes."""
    return sum(
        torch.Size(entry.shape).numel() * (dtype or entry.dtype).itemsize
        for name, entry in source.tensors.items()
        if name.startswith(WEIGHTS)
    )


def checked_config(source: WeightSource) -> ModelConfig:
    """Return the model of `source`, after comparing the names and shapes of its tensors with it.

    Raises:
        CheckpointError: they differ.
    """
    config = source.model_config()
    check_same_tensors(source, {WEIGHTS + name: shape for name, shape in parameter_shapes(config).items()})
    return config


def _output(source: WeightSource, name: str, dtype: torch.dtype | None) -> OutputTensor:
    entry = source.tensors[WEIGHTS + name]

    def parts() -> Iterator[torch.Tensor]:
        for offsets, lengths in pieces(entry):
            yield source.read(WEIGHTS + name, offsets, lengths)

    return OutputTensor(name, dtype or entry.dtype, entry.shape, parts)


def _write_tokenizer(source: WeightSource, config: ModelConfig, partial: Path) -> SpecialTokens:
    """Copy the tokenizer's files, make those that transformers needs, and return the special ids."""
    files = source.tokenizer_files()
    for name, path in files.items():
        shutil.copyfile(path, partial / name)
    special = special_tokens(files)
    model_file = files.get("tokenizer.model")
    if model_file is not None and "tokenizer.json" not in files:
        try:
            build_tokenizer(model_file).save(str(partial / "tokenizer.json"))
            write_json(partial / "tokenizer_config.json", tokenizer_settings(model_file, config.context))
        except DataError as error:
            _log.warning("no tokenizer.json: %s", error)
    elif "tokenizer.json" in files and "tokenizer_config.json" not in files:
        write_json(partial / "tokenizer_config.json", json_settings(files["tokenizer.json"], config.context))
    return special


@contextlib.contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """Yield a hidden directory beside `output`, which becomes `output` when the block ends without an error."""
    output = Path(os.path.abspath(output))
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise CheckpointError(f"output={output} already exists and is not empty; give another or remove it")
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            if path.is_dir():
                fsync_directory(path)
            else:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        publish_directory(partial, output)
    except OSError as error:
        raise CheckpointError(f"{error.filename or output}: {error.strerror}; {output} is not written") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
