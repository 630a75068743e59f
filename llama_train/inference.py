"""A trained model ready to be asked, on one process or sharded over several.

torchrun --nproc-per-node=8 -m llama_train.generate checkpoint=DIR prompt="..."
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.tokenize import Tokenizer, load_tokenizer
from llama_foundation.errors import ConfigError
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.checkpoint.restore import WEIGHTS, check_same_tensors, restore
from llama_train.command import MEETING_SECONDS
from llama_train.config import ModelConfig, Precision
from llama_train.distributed import distributed
from llama_train.environment import environment_rank
from llama_train.model.llama import Llama
from llama_train.model.names import parameter_shapes
from llama_train.parallel.held import held_parameters
from llama_train.parallel.layout import Layout
from llama_train.parallel.shard import apply_fsdp
from llama_train.peers import Peers


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode, with what belongs to it; sharded if there are peers."""

    model: Llama
    config: ModelConfig
    tokenizer: Tokenizer
    peers: Peers


@contextlib.contextmanager
def opened(checkpoint: str, tokenizer: str | None, device: str, store: dist.Store) -> Iterator[Opened]:
    """Load a model from a native checkpoint or a Hugging Face directory; over several ranks, sharded by FSDP2.

    Raises:
        CheckpointError, DataError: the checkpoint or its tokenizer is missing or damaged.
        ConfigError: there is no tokenizer, or it does not belong to the model.
    """
    _, size = environment_rank()
    if size == 1:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, config, directory = load_model(checkpoint, device=device)
        yield Opened(model.eval(), config, fitting_tokenizer(checkpoint, config, tokenizer, directory), Peers())
        return
    with distributed(device, store, MEETING_SECONDS) as world:
        source = open_weights(checkpoint, world.control)
        config = source.model_config()
        directory = next((file.parent for file in source.tokenizer_files().values()), None)
        checked = fitting_tokenizer(checkpoint, config, tokenizer, directory)
        check_same_tensors(source, {WEIGHTS + name: shape for name, shape in parameter_shapes(config).items()})
        with torch.device("meta"):
            model = Llama(config).to(torch.float32)
        mesh = dist.device_mesh.init_device_mesh(world.device.type, (size,), mesh_dim_names=("data_shard",))
        apply_fsdp(model, mesh, Precision.fp32, reshard_after_forward=True)
        model.to_empty(device=world.device)
        held = held_parameters({0: model}, config, Layout(1, size, world.rank, micro_batch_size=1))
        targets = [chunk for each in held for chunk in each.chunks(WEIGHTS + each.name, each.parameter)]
        for target, read in zip(targets, restore(source, targets), strict=True):
            target.tensor.copy_(read.tensor)
        yield Opened(model.eval(), config, checked, Peers(world.control))


def fitting_tokenizer(checkpoint: str, config: ModelConfig, tokenizer: str | None, beside: Path | None) -> Tokenizer:
    """Load the tokenizer file or directory `tokenizer`, or else the one `beside` the weights.

    Raises:
        ConfigError: there is none, or it has more tokens than the model.
    """
    where = tokenizer or beside
    if where is None:
        raise ConfigError(f"checkpoint={checkpoint} has no tokenizer with it; add tokenizer=FILE")
    loaded = load_tokenizer(where)
    if loaded.vocabulary_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer {loaded.path} has {loaded.vocabulary_size} tokens, the model of "
            f"checkpoint={checkpoint} only {config.vocab_size}: it was trained with another one"
        )
    return loaded
