"""A plan as files: a layout for configs/layout/, and every figure as JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from llama_foundation.compose import CONFIGS
from llama_foundation.errors import ConfigError
from llama_foundation.files import publish_text
from llama_train.plan.page import layout_settings
from llama_train.plan.recipe import Bill, Stage
from llama_train.plan.search import Candidate


def write_layout(candidate: Candidate, path: Path) -> None:
    """Write the layout as a member of configs/layout/.

    Its first line is the command that it was planned for; the engine's settings stand there, because a layout file
    holds the layout only.

    Raises:
        ConfigError: the file exists, is no .yaml, or its directory does not exist.
    """
    if path.suffix != ".yaml":
        raise ConfigError(f"plan.write={path} must end in .yaml")
    if path.exists():
        raise ConfigError(f"plan.write={path} exists; remove it, or choose another name")
    if not path.parent.is_dir():
        raise ConfigError(f"plan.write={path}: there is no directory {path.parent}; use one like configs/layout/")
    engine, name = candidate.config.engine, candidate.config.name
    model, cluster = candidate.config.model.name, candidate.config.cluster.name
    switches = [
        f"engine.{key}={str(getattr(getattr(engine, key), 'name', getattr(engine, key))).lower()}"
        for key in ("precision", "compile", "activation_checkpointing", "reduce_gradients", "reshard_after_forward")
        if getattr(getattr(engine, key), "name", "") != "auto"
    ]
    recipe = f"experiment={name}" if (CONFIGS / "experiment" / f"{name}.yaml").is_file() else f"model={model}"
    first = f"# llama-train layout={path.stem} {recipe} cluster={cluster} {' '.join(switches)}"
    lines = [
        f"{first}; {candidate.layout.world_size} GPUs",
        f"# Planned by llama-plan: {candidate.time.tokens_per_second_per_device:,.0f} tokens/s/GPU, "
        f"{candidate.memory.needed() / 2**30:.0f} GiB.",
    ]
    lines += [f"{name}: {value}" for name, value in layout_settings(candidate).items()]
    publish_text(path, "\n".join(lines) + "\n")


def write_json(
    path: Path, candidate: Candidate, best: list[Candidate], timed: list[tuple[Stage, float]], total: Bill
) -> None:
    """Write what the page says."""
    content = {
        "chosen": _plain(candidate),
        "layouts": [_plain(each) for each in best],
        "stages": [asdict(stage) | {"seconds_per_step": seconds} for stage, seconds in timed],
        "run": asdict(total),
    }
    publish_text(path, json.dumps(content, indent=2) + "\n")


def _plain(candidate: Candidate) -> dict[str, object]:
    return {
        "layout": layout_settings(candidate),
        "activation_checkpointing": candidate.config.engine.activation_checkpointing.name,
        "memory": {term.name: term.bytes for term in candidate.memory.terms},
        "needed_bytes": candidate.memory.needed(candidate.config.plan.margin),
        "seconds": asdict(candidate.time),
        "tokens_per_second_per_device": candidate.time.tokens_per_second_per_device,
    }
