"""llama-average: one model from several checkpoints of it, a piece of a tensor at a time."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch
from omegaconf import MISSING, OmegaConf

from data_pipeline.shards.reader import open_root
from llama_foundation import compose
from llama_foundation.errors import CheckpointError, ConfigError
from llama_train.checkpoint.huggingface import appearing, checked_config, weight_bytes
from llama_train.checkpoint.index import complete_steps, step_name
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.checkpoint.restore import WEIGHTS, Checkpoint, WeightSource, pieces
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import DataConfig, ModelConfig
from llama_train.data.batches import check_validation, validation_micro_batches
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes

_PIECE_BYTES = 16 * 2**20
"""Of a tensor as it is stored. Of each piece the members' values and a float64 sum are held, one member at a time."""


class Mode(Enum):
    uniform = "uniform"
    weighted = "weighted"  # by `weights`
    ema = "ema"  # the exponential moving average, oldest first, that would have been kept at these steps


@dataclass
class EvaluateConfig:
    """On which held-out tokens the members and the average are compared."""

    shards: str | None = None  # an output directory of llama-data; null: no comparison
    batches: int = 8
    batch_size: int = 4  # sequences
    sequence_length: int | None = None  # tokens; null: as the newest member was trained, or the model's context
    device: str = "auto"  # auto, cpu or cuda

    def check(self) -> None:
        for name in ("batches", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluate.{name}={getattr(self, name)} must be at least 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"evaluate.device={self.device}; use auto, cpu or cuda")


@dataclass
class AverageConfig:
    """What to average, how, and into what. Give `inputs`, or `run` and `last`."""

    output: str = MISSING  # the directory to make: a native checkpoint without optimizer state
    inputs: list[str] = field(default_factory=list)  # checkpoints, or Hugging Face directories, oldest first
    run: str | None = None  # the directory of a run
    last: int = 4  # of `run`: its newest n checkpoints
    mode: Mode = Mode.uniform
    weights: list[float] = field(default_factory=list)  # mode=weighted: one for each input; scaled to sum to 1
    decay: float = 0.9  # mode=ema: what is kept of the average at each further checkpoint
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def check(self) -> None:
        if bool(self.inputs) == (self.run is not None):
            raise ConfigError("give either inputs=[CHECKPOINT,...] or run=DIRECTORY, not both and not neither")
        if self.last < 1:
            raise ConfigError(f"last={self.last} must be at least 1")
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay={self.decay} must be at least 0 and below 1")
        if bool(self.weights) != (self.mode is Mode.weighted):
            raise ConfigError(f"mode={self.mode.value}, weights={self.weights}: weights go with mode=weighted, only")
        if any(not 0 <= weight < float("inf") for weight in self.weights) or (self.weights and not sum(self.weights)):
            raise ConfigError(f"weights={self.weights} must be numbers of at least 0, and not all 0")
        self.evaluate.check()


def member_weights(mode: Mode, count: int, weights: Sequence[float] = (), decay: float = 0.9) -> list[float]:
    """Return what each member counts, oldest first; the sum is 1.

    The moving average starts as the oldest member and becomes decay * average + (1 - decay) * member at each other.
    """
    if mode is Mode.uniform:
        return [1 / count] * count
    if mode is Mode.weighted:
        return [weight / sum(weights) for weight in weights]
    return [(1.0 if member == 0 else 1 - decay) * decay ** (count - 1 - member) for member in range(count)]


def average(sources: Sequence[WeightSource], weights: Sequence[float], output: Path, mode: Mode = Mode.uniform) -> Path:
    """Write the weighted sum of the members' weights as a native checkpoint without optimizer state.

    Sums are float64; each tensor gets the dtype of the newest (last) member's. The state is the newest member's, with
    what was averaged.

    Raises:
        CheckpointError: the members are of different models, or cannot be read; `output` is not empty.
    """
    newest = sources[-1]
    config = _one_model(sources)

    def chunks() -> Iterator[Chunk]:
        for name in parameter_shapes(config):
            entry = newest.tensors[WEIGHTS + name]
            for offsets, lengths in pieces(entry, _PIECE_BYTES):
                total = torch.zeros(lengths, dtype=torch.float64)
                for source, weight in zip(sources, weights, strict=True):
                    total += source.read(WEIGHTS + name, offsets, lengths).double().mul_(weight)
                yield Chunk(WEIGHTS + name, entry.shape, offsets, total.to(entry.dtype))

    members = [
        {"directory": str(source.directory), "step": _state(source).get("step"), "weight": weight}
        for source, weight in zip(sources, weights, strict=True)
    ]
    kept = {key: value for key, value in _state(newest).items() if key not in ("engine", "logger_ids")}
    state = {"step": 0} | kept | {"model": dataclasses.asdict(config)}
    state["averaged"] = {"mode": mode.value, "members": members}
    with appearing(output) as partial:
        tokenizer = {f"tokenizer/{name}": path for name, path in newest.tokenizer_files().items()}
        CheckpointStore(partial).save(state["step"], chunks(), state, tokenizer)
        for path in (partial / step_name(state["step"])).iterdir():
            os.rename(path, partial / path.name)
        (partial / step_name(state["step"])).rmdir()
    return output


def validation_loss(path: Path | str, config: EvaluateConfig, data: DataConfig) -> float:
    """Return the mean loss per token of the model at `path` over `config.batches` validation batches."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, model_config, _ = load_model(path, device=device)
    if data.sequence_length > model_config.context:
        raise ConfigError(
            f"evaluate.sequence_length={data.sequence_length} is longer than the model's context of "
            f"{model_config.context}; use at most that"
        )
    root, loss, tokens = open_root(data.shards), 0.0, 0
    if root.tokenizer.vocabulary_size > model_config.vocab_size:
        raise ConfigError(
            f"evaluate.shards={data.shards} has {root.tokenizer.vocabulary_size} tokens in its vocabulary, the model "
            f"{model_config.vocab_size}; use the shards of its own tokenizer"
        )
    with torch.inference_mode():
        for source in root.sources("validation"):
            for part in validation_micro_batches(root, data, source, config.batches, 0, 1, 1):
                ids = None if part.document_ids is None else part.document_ids.to(device)
                loss_sum, count = model(part.tokens.to(device), part.labels.to(device), ids, part.positions.to(device))
                loss, tokens = loss + float(loss_sum), tokens + int(count)
    return loss / max(tokens, 1)


def run(config: AverageConfig) -> None:
    """Average, print what was averaged, and compare if asked to."""
    sources = [open_weights(path) for path in (config.inputs or _newest(Path(str(config.run)), config.last))]
    if config.weights and len(config.weights) != len(sources):
        raise ConfigError(f"weights={config.weights} are {len(config.weights)}, but there are {len(sources)} inputs")
    data = _evaluation_data(config.evaluate, sources[-1])
    weights = member_weights(config.mode, len(sources), config.weights, config.decay)
    output = average(sources, weights, Path(config.output), config.mode)
    print(
        f"{len(sources)} checkpoints -> {output} ({config.mode.value}, {weight_bytes(sources[-1], None):,} bytes of "
        "weights)"
    )
    rows = [(str(source.directory), weight) for source, weight in zip(sources, weights, strict=True)]
    width = max(len(name) for name, _ in [*rows, (str(output), 1.0)])
    print(f"{'checkpoint':{width}}  weight" + ("  validation loss" if data else ""))
    for name, weight in [*rows, (str(output), 1.0)]:
        loss = f"  {validation_loss(name, config.evaluate, data):15.5f}" if data else ""
        print(f"{name:{width}}  {weight:6.4f}{loss}", flush=True)


def _newest(directory: Path, last: int) -> list[str]:
    found = complete_steps(directory / "checkpoints") or complete_steps(directory)
    if len(found) < last:
        raise ConfigError(
            f"run={directory} has {len(found)} checkpoints, last={last} asks for more; use last={len(found)} or less, "
            "and keep more of them with checkpoint.keep_last or checkpoint.keep_every"
            if found
            else f"run={directory} holds no checkpoint; give the directory of a run that has saved some"
        )
    return [str(path) for path in list(found.values())[-last:]]


def _one_model(sources: Sequence[WeightSource]) -> ModelConfig:
    """The members' model, with the name and the context of the newest."""
    config = checked_config(sources[-1])
    ours = dataclasses.asdict(config)
    for source in sources[:-1]:
        theirs = dataclasses.asdict(checked_config(source))
        for key in ours.keys() - {"name", "context", "initial_std"}:
            if ours[key] != theirs[key]:
                raise CheckpointError(
                    f"{source.directory} is another model than {sources[-1].directory}: model.{key} is {theirs[key]} "
                    f"there and {ours[key]} here; only checkpoints of one model can be averaged"
                )
        tokenizers = [_state(each).get("tokenizer") for each in (source, sources[-1])]
        if None not in tokenizers and tokenizers[0] != tokenizers[1]:
            raise CheckpointError(
                f"{source.directory} was trained with another tokenizer than {sources[-1].directory}: {tokenizers[0]} "
                f"there and {tokenizers[1]} here"
            )
    return config


def _state(source: WeightSource) -> dict:
    return source.state if isinstance(source, Checkpoint) else {}


def _evaluation_data(config: EvaluateConfig, newest: WeightSource) -> DataConfig | None:
    if config.shards is None:
        return None
    trained = (_state(newest).get("config") or {}).get("data")
    data = compose.to_object(OmegaConf.create(trained), DataConfig) if trained else DataConfig()
    length = config.sequence_length or (data.sequence_length if trained else newest.model_config().context)
    data = dataclasses.replace(data, shards=config.shards, sequence_length=length, batch_size=config.batch_size)
    check_validation(open_root(data.shards), data, config.batches)  # refused before anything is written
    return data


def main() -> int:
    return compose.main("average", AverageConfig, run)


if __name__ == "__main__":
    sys.exit(main())
