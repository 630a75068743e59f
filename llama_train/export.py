"""llama-convert: a checkpoint to Hugging Face's or Meta's format, or back; also from DeepSpeed's.

`python -m llama_train.export` does the same.
"""

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.checkpoint.huggingface_config import MAX_SHARD_BYTES

_DTYPES = ("float32", "bfloat16", "float16", "float64")


class Target(Enum):
    huggingface = "huggingface"
    meta = "meta"
    native = "native"


@dataclass
class ConvertConfig:
    """What to convert, and into what."""

    input: str = MISSING  # a checkpoint, a run (its newest), a Hugging Face directory, Meta's or DeepSpeed's files
    to: Target = MISSING
    output: str = MISSING  # the directory to make
    dtype: str | None = None  # of the weights; null: as they are
    max_shard_bytes: int = MAX_SHARD_BYTES  # of one safetensors file
    model_parallel: int = 1  # to=meta: how many consolidated files; Meta's code runs as many processes
    context: int | None = None  # tokens, if the input is Meta's files, which do not say; null: as its release has it

    def check(self) -> None:
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ConfigError(f"dtype={self.dtype}; use one of {', '.join(_DTYPES)}, or null for what the input has")
        if self.max_shard_bytes < 1:
            raise ConfigError(f"max_shard_bytes={self.max_shard_bytes} must be at least 1")
        if self.model_parallel < 1:
            raise ConfigError(f"model_parallel={self.model_parallel} must be at least 1")
        if self.context is not None and self.context < 1:
            raise ConfigError(f"context={self.context} must be at least 1")


def run(config: ConvertConfig) -> None:
    """Convert, with a progress bar where standard error is a terminal, and print where the result is."""
    # Late: they import torch, which --help does not need.
    from llama_train.checkpoint.huggingface import export_huggingface, import_native, weight_bytes
    from llama_train.checkpoint.index import DTYPES
    from llama_train.checkpoint.load import open_weights
    from llama_train.checkpoint.meta import export_meta
    from llama_train.model_card import model_card

    source = open_weights(config.input, context=config.context)
    dtype = DTYPES[config.dtype] if config.dtype else None
    output = Path(config.output)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("converting", total=weight_bytes(source, dtype))

        def wrote(count: int) -> None:
            progress.advance(task, count)

        if config.to is Target.huggingface:
            readme = model_card(source, config.dtype)
            export_huggingface(source, output, dtype, config.max_shard_bytes, wrote, readme)
        elif config.to is Target.meta:
            export_meta(source, output, dtype, config.model_parallel, wrote)
        else:
            import_native(source, output, dtype, wrote)
    print(f"{source.directory} -> {output} ({config.to.value}, {weight_bytes(source, dtype):,} bytes of weights)")


def main() -> int:
    return compose.main("convert", ConvertConfig, run)


if __name__ == "__main__":
    sys.exit(main())
