"""A whole model on one device, from a native checkpoint, a Hugging Face directory or Meta's files."""

from pathlib import Path

import torch

from llama_train.checkpoint.collective import Group
from llama_train.checkpoint.deepspeed_files import DeepSpeedDirectory, is_deepspeed
from llama_train.checkpoint.huggingface_files import HuggingFaceDirectory, is_huggingface
from llama_train.checkpoint.meta_files import MetaDirectory, is_meta
from llama_train.checkpoint.restore import WEIGHTS, WeightSource, check_same_tensors, open_checkpoint, pieces
from llama_train.config import ModelConfig
from llama_train.model.llama import Llama
from llama_train.model.names import canonical_parameters, parameter_shapes


def fill_model(source: WeightSource, config: ModelConfig, device: str, dtype: torch.dtype) -> Llama:
    """Build the model without memory of its own for random weights, and read its weights into it."""
    check_same_tensors(source, {WEIGHTS + name: shape for name, shape in parameter_shapes(config).items()})
    with torch.device("meta"):
        model = Llama(config)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in canonical_parameters(model):
            for offsets, lengths in pieces(source.tensors[WEIGHTS + name]):
                part = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
                parameter[part].copy_(source.read(WEIGHTS + name, offsets, lengths))
    return model


def load_model(
    path: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Llama, ModelConfig, Path | None]:
    """Load a model for inference from a native checkpoint, a Hugging Face directory or Meta's files.

    Returns:
        The `Llama`, its configuration, and the directory that holds its tokenizer's files, if there are any.

    Raises:
        CheckpointError: it is missing, damaged, or no Llama.
    """
    source = open_weights(path)
    config = source.model_config()
    tokenizer = next((file.parent for file in source.tokenizer_files().values()), None)
    return fill_model(source, config, device, dtype), config, tokenizer


def open_weights(path: Path | str, group: Group = None, context: int | None = None) -> WeightSource:
    """Open a native checkpoint, a Hugging Face directory, Meta's or DeepSpeed's files, by what `path` holds.

    Args:
        context: of the model in tokens, for Meta's files, which do not say it; None: see `MetaDirectory`.

    Raises:
        CheckpointError: it is none of them, or damaged.
    """
    if is_deepspeed(Path(path)):  # before Hugging Face's, whose Trainer leaves both in one directory
        return DeepSpeedDirectory(Path(path), group)
    if is_huggingface(Path(path)):
        return HuggingFaceDirectory(Path(path), group)
    if is_meta(Path(path)):
        return MetaDirectory(Path(path), group, context)
    return open_checkpoint(path, group)
