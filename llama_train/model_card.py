"""README.md of an exported model, from what its checkpoint and its run have recorded; what they did not is said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_pipeline.shards.reader import open_root
from llama_foundation.compose import dump, to_object
from llama_foundation.errors import UserError
from llama_train.checkpoint.huggingface_files import json_object
from llama_train.checkpoint.restore import Checkpoint, WeightSource
from llama_train.config import DataConfig, ModelConfig
from llama_train.data.amendments import Amendment
from llama_train.data.order import TokenOrder
from llama_train.model.size import non_embedding_parameters, parameter_count
from llama_train.observe.metrics import history

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Losses:
    """In nats per token; None where nothing is recorded."""

    training: float | None = None
    validation: float | None = None
    validation_step: int | None = None


def model_card(source: WeightSource, dtype: str | None = None) -> str:
    """Return the model card of `source` as Markdown.

    Args:
        dtype: of the exported weights; None: as `source` has them.
    """
    config = source.model_config()
    state = source.state if isinstance(source, Checkpoint) else {}
    stored = sorted({str(entry.dtype).removeprefix("torch.") for entry in source.tensors.values()})
    training: dict[str, Any] = state.get("config") or {}
    losses = run_losses(source.directory, state.get("step"))
    sections = [
        f"# {config.name}",
        "A Llama, pretrained with llama-train. Licence: to be chosen by whoever publishes it.",
        "## Architecture",
        _table(_architecture(config) | {"dtype of the weights": dtype or ", ".join(stored)}),
        "## Training",
        _table(_training(state, losses)),
        "## Data",
        _data(state, training),
        "## How to load it",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this directory", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this directory")  # if it has a tokenizer.json\n```',
    ]
    if training:
        # paths, names of accounts and machines are the trainer's own
        told = {key: value for key, value in training.items() if key not in ("output", "logging", "cluster")}
        told["data"] = {key: value for key, value in training["data"].items() if key != "shards"}
        sections += ["## Configuration", f"```yaml\n{dump(told)}```"]
    return "\n\n".join(sections) + "\n"


def run_losses(directory: Path, step: int | None) -> Losses:
    """Look up the losses of `step` in the records of the run whose checkpoint lies in `directory`."""
    run = directory.absolute().parent.parent
    if directory.absolute().parent.name != "checkpoints" or not step:
        return Losses()
    try:
        if (run / "metrics.jsonl").is_file():
            rows = [row for row in history(run / "metrics.jsonl") if row["step"] <= step]
            measured = [row for row in rows if row["validation_loss"] is not None]
            if rows and rows[-1]["step"] == step:
                last = measured[-1] if measured else {"validation_loss": None, "step": None}
                return Losses(rows[-1]["loss"], last["validation_loss"], last["step"])
        if (run / "summary.json").is_file():
            summary = json_object(run / "summary.json")
            if summary.get("steps") == step:
                return Losses(summary.get("loss_last"), summary.get("validation_loss"), None)
    except UserError:
        pass  # a damaged record is no reason not to export
    return Losses()


def _architecture(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {
        "parameters": f"{parameter_count(config):,}",
        "parameters without embeddings": f"{non_embedding_parameters(config):,}",
        "layers": config.layers,
        "hidden size": f"{config.hidden_size:,}",
        "feed-forward size": f"{config.ffn_size:,}",
        "attention heads": config.heads,
        "key/value heads": config.kv_heads,
        "head size": config.head_dim,
        "vocabulary": f"{config.vocab_size:,}",
        "context in tokens": f"{config.context:,}",
        "rotary base": f"{config.rope_theta:g}",
        "rotary scaling": "none"
        if scaling is None
        else f"llama3, factor {scaling.factor:g} over {scaling.original_context:,} tokens",
        "tied embeddings": "yes" if config.tied_embeddings else "no",
    }


def _training(state: dict[str, Any], losses: Losses) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "optimizer steps": f"{state['step']:,}" if state.get("step") else _UNKNOWN,
        "tokens": f"{state['tokens']:,}" if state.get("tokens") else _UNKNOWN,
        "training loss at the last step": _loss(losses.training),
        "validation loss": _loss(losses.validation),
        "tokenizer fingerprint": f"`{state['tokenizer']}`" if state.get("tokenizer") else _UNKNOWN,
        "data fingerprint": f"`{state['data_fingerprint']}`" if state.get("data_fingerprint") else _UNKNOWN,
    }
    if losses.validation_step is not None and losses.validation_step != state.get("step"):
        rows["validation loss"] += f" (after step {losses.validation_step:,})"
    averaged = state.get("averaged")
    if averaged:
        steps = ", ".join(str(member["step"]) for member in averaged["members"])
        rows["averaged over"] = f"{len(averaged['members'])} checkpoints ({averaged['mode']}), steps {steps}"
    return rows


def _loss(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.4f} nats per token"


def _data(state: dict[str, Any], training: dict[str, Any]) -> str:
    if not training:
        return "Not recorded: the weights came without the record of a run."
    try:
        data = to_object(OmegaConf.create(training["data"]), DataConfig)
        root = open_root(data.shards)
        amendments = [Amendment(**amendment) for amendment in state["amendments"]]
        order = TokenOrder(data, training["steps"], training["seed"], amendments, root)
        if order.fingerprint != state["data_fingerprint"]:
            return "The shards of the run have been replaced by others since, so nothing is said of them."
        epochs = order.epochs(state["step"])
        rows = [
            f"| {source} | {root.open('train', source).tokens:,} | {epochs[source]:.2f} |" for source in sorted(epochs)
        ]
        return "\n".join(["| source | tokens it has | epochs done |", "|---|---:|---:|", *rows])
    except (UserError, KeyError, TypeError, ValueError, OSError):
        named = (training.get("data") or {}).get("sources") or {}
        weights = ", ".join(f"{source} {weight:g}" for source, weight in named.items())
        return "The shards are not here, so tokens and epochs per source are not known. Sources and weights: " + (
            weights or "all of the shards, in proportion to their tokens"
        )


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
