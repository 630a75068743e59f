"""Writing a model as Meta publishes it, a piece of a tensor at a time."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from llama_foundation.errors import ConfigError
from llama_train.checkpoint.huggingface import Progress, appearing, checked_config
from llama_train.checkpoint.huggingface_files import OutputTensor, write_json
from llama_train.checkpoint.index import TensorEntry
from llama_train.checkpoint.meta_config import to_params
from llama_train.checkpoint.meta_files import PARAMS
from llama_train.checkpoint.meta_layout import EMBEDDING, is_rotary, meta_names, pairs_from_halves
from llama_train.checkpoint.pth import write_pth
from llama_train.checkpoint.restore import WEIGHTS, WeightSource, pieces
from llama_train.checkpoint.stored_chunk import ROWS_BYTES
from llama_train.config import ModelConfig

_ROPE_THETA_OF_ROWS = 500000.0  # that of Llama 3, whose code splits the embedding by rows


def export_meta(
    source: WeightSource,
    output: Path,
    dtype: torch.dtype | None = None,
    model_parallel: int = 1,
    wrote: Progress = lambda _: None,
) -> Path:
    """Write the weights of `source` as Meta's files; the directory appears whole.

    Args:
        dtype: of the weights; None: as they are.
        model_parallel: how many consolidated files; Meta's code runs as many processes.

    Raises:
        ConfigError: the model does not divide by `model_parallel`, or params.json cannot describe it.
        CheckpointError: `source` does not fit its own model, or cannot be read; `output` is not empty.
    """
    config = checked_config(source)
    _check_divides(config, model_parallel)
    params = to_params(config)
    with appearing(output) as partial:
        for number in range(model_parallel):
            tensors = [
                _part(source, config, *named, dtype, number, model_parallel)
                for named in meta_names(config, tied_copy=True)
            ]
            write_pth(partial / f"consolidated.{number:02d}.pth", tensors, wrote)
        write_json(partial / PARAMS, params)
        for name, path in source.tokenizer_files().items():
            shutil.copyfile(path, partial / name)
    return output


def _check_divides(config: ModelConfig, model_parallel: int) -> None:
    sizes = {name: getattr(config, name) for name in ("kv_heads", "heads", "vocab_size", "hidden_size", "ffn_size")}
    for name, size in sizes.items():
        if size % model_parallel:
            fitting = [n for n in range(1, config.kv_heads + 1) if all(size % n == 0 for size in sizes.values())]
            raise ConfigError(
                f"model_parallel={model_parallel} does not divide {name}={size} of the model; "
                f"use one of {', '.join(map(str, fitting))}"
            )


def _part(
    source: WeightSource,
    config: ModelConfig,
    theirs: str,
    ours: str,
    axis: int | None,
    dtype: torch.dtype | None,
    number: int,
    model_parallel: int,
) -> OutputTensor:
    """The part of one tensor that goes into file `number`."""
    whole = source.tensors[WEIGHTS + ours]
    by_rows = config.rope_theta == _ROPE_THETA_OF_ROWS or config.tied_embeddings
    if theirs == EMBEDDING and not by_rows:
        axis = 1
    shape, start = list(whole.shape), [0] * len(whole.shape)
    if axis is not None:
        shape[axis] //= model_parallel
        start[axis] = number * shape[axis]
    rotary = is_rotary(ours)

    def parts() -> Iterator[torch.Tensor]:
        entry = TensorEntry(whole.dtype, tuple(shape))
        for offsets, lengths in _whole_heads(entry, config.head_dim) if rotary else pieces(entry):
            part = source.read(WEIGHTS + ours, tuple(a + b for a, b in zip(start, offsets, strict=True)), lengths)
            yield pairs_from_halves(part, config.head_dim) if rotary else part
            del part  # before the next one is read

    return OutputTensor(theirs, dtype or whole.dtype, tuple(shape), parts)


def _whole_heads(entry: TensorEntry, head_dim: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    rows, columns = entry.shape
    step = max(1, ROWS_BYTES // (head_dim * columns * entry.dtype.itemsize)) * head_dim
    for row in range(0, rows, step):
        yield (row, 0), (min(step, rows - row), columns)
