"""A trained model ready to be asked, on one process or sharded over several, and the commands that ask it.

torchrun --nproc-per-node=8 -m llama_train.generate checkpoint=DIR prompt="..."
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from data_pipeline.tokenize import Tokenizer, load_tokenizer
from llama_foundation import compose
from llama_foundation.errors import ConfigError, UserError
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.checkpoint.restore import WEIGHTS, check_same_tensors, restore
from llama_train.config import ModelConfig, Precision
from llama_train.distributed import distributed, environment_rank, meet
from llama_train.model.llama import Llama
from llama_train.model.names import parameter_shapes
from llama_train.parallel.held import held_parameters
from llama_train.parallel.layout import Layout
from llama_train.parallel.shard import apply_fsdp
from llama_train.peers import Peers

MEETING_SECONDS = 600.0
"""How long a rank waits for the others, to start and in a collective."""

Config = TypeVar("Config")


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode, with what belongs to it; sharded if there are peers."""

    model: Llama
    config: ModelConfig
    tokenizer: Tokenizer
    peers: Peers


def run_command(entry: str, schema: type[Config], command: Callable[[Config, dist.Store], int | None]) -> int:
    """Run `command` on every rank, with the configuration that rank 0 composed; return the exit status.

    Of an error that every rank meets, only the first rank speaks.
    """
    rank, _ = environment_rank()
    store = meet(MEETING_SECONDS)
    if rank == 0:
        verdict: dict[str, Any] = {"status": 0}

        def lead(config: Config) -> int | None:
            verdict["config"] = compose.dump(config)
            store.set("verdict", json.dumps(verdict))
            try:
                return command(config, store)
            except UserError as error:
                store.set(_error_key(error), "said")
                raise

        try:
            verdict["status"] = compose.main(entry, schema, lead)
        finally:
            if "config" not in verdict:  # refused, or only shown (--cfg, --help)
                verdict["status"] = verdict["status"] if sys.exc_info()[0] is None else 1
                store.set("verdict", json.dumps(verdict))
        return verdict["status"]
    store.wait(["verdict"], timedelta(seconds=MEETING_SECONDS))
    verdict = json.loads(store.get("verdict"))
    if "config" not in verdict:
        return verdict["status"]
    try:
        return command(compose.to_object(OmegaConf.create(verdict["config"]), schema), store) or 0
    except UserError as error:
        if not _said_by_rank_0(error, store):
            print(f"rank {rank}: error: {error}", file=sys.stderr)
        return error.exit_code


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


def check_device(device: str) -> None:
    """Refuse a device that does not exist.

    Raises:
        ConfigError: it is none of auto, cpu and cuda, or there is no CUDA device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={device}; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device here; use device=cpu")


def _error_key(error: UserError) -> str:
    return f"error-{hashlib.sha256(str(error).encode()).hexdigest()}"


def _said_by_rank_0(error: UserError, store: dist.Store) -> bool:
    try:
        store.wait([_error_key(error)], timedelta(seconds=2))
    except dist.DistError:
        return False
    return True
