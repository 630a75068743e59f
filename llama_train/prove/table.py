"""What a proof prints: rows of at most 100 columns, Markdown, JSON."""

import dataclasses
import datetime
import platform
import re
from importlib import metadata
from typing import Any

from llama_train.config import EngineName, Precision, TrainConfig
from llama_train.prove.harness import FLOAT64, Differences
from llama_train.prove.proof import SPREAD_TIMES, ZERO_BF16, ZERO_MOST, Outcome

_FORMAT = "{:<38} {:<6} {:>5} {:>5} {:<21} {:>5} {:>5} {:>3} {:<4}"
HEADING = _FORMAT.format("layout", "engine", "loss", "grad", "worst parameter", "norm", "wght", "s", "")

_TIMES = f"{SPREAD_TIMES:.0f} times what one process differs from itself in other micro-batches"


def tolerance(config: TrainConfig) -> str:
    """Return how far a case may be from one process, in words.

    Args:
        config: the shrunk one, in the precision of the proof.
    """
    precision = config.engine.precision
    if precision is Precision.fp64:
        return limits(FLOAT64)
    if config.engine.name is not EngineName.deepspeed:
        return f"{_TIMES} and in float64"
    if precision is Precision.fp32:
        return f"{_TIMES}, loss and norm by {_short(ZERO_MOST)} at most"
    return f"loss and norm {_short(ZERO_BF16)} from fp32, gradients and weights {_TIMES} and from fp32"


def row(outcome: Outcome) -> str:
    """Return a line of the table."""
    d = outcome.differences or Differences(*[float("nan")] * 4)
    numbers = [_short(value) for value in (d.loss, d.gradient, d.norm, d.weight)]
    loss, gradient, norm, weight = numbers
    verdict = "pass" if outcome.passed else "FAIL"
    return _FORMAT.format(
        outcome.case,
        "mixed" if "→" in outcome.engine else outcome.engine,
        loss,
        gradient,
        _parameter(d.worst_parameter),
        norm,
        weight,
        f"{outcome.seconds:.0f}",
        verdict,
    )


def limits(limit: Differences) -> str:
    """Return how far a run may be off, in words."""
    return (
        f"loss {_short(limit.loss)}, gradients {_short(limit.gradient)} of a parameter's largest, norm "
        f"{_short(limit.norm)} of it, weights {_short(limit.weight)}"
    )


def markdown(outcomes: list[Outcome], about: dict[str, Any], notes: list[str]) -> str:
    """Return the table with what was proven, when and with which versions."""
    passed = sum(outcome.passed for outcome in outcomes)
    lines = [
        f"`llama-prove engine={about['engine']} prove.matrix={about['matrix']} prove.precision={about['precision']}` "
        f"on {about['date']}, {_versions(about)}, {about['device']}: {about['model']} shrunk to {about['shrunk']}. "
        f"{passed} of {len(outcomes)} passed, in {about['seconds'] / 60:.0f} minutes. May be off by: "
        f"{about['tolerance']}.",
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
        "| layout | engine | ranks | loss | gradient | worst parameter | norm | weights | s | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        d = outcome.differences or Differences(*[float("nan")] * 4)
        numbers = " | ".join(_short(each) for each in (d.loss, d.gradient))
        rest = " | ".join(_short(each) for each in (d.norm, d.weight))
        lines.append(
            f"| {outcome.case} | {outcome.engine} | {outcome.ranks} | {numbers} | {_parameter(d.worst_parameter)} | "
            f"{rest} | {outcome.seconds:.0f} | {'pass' if outcome.passed else '**FAIL**'} |"
        )
    return "\n".join(lines) + "\n"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return everything that is known of a case."""
    return dataclasses.asdict(outcome) | {"passed": outcome.passed}


def versions(engine: EngineName) -> dict[str, str]:
    """Return the day and the versions that a result belongs to."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {"date": today, "torch": metadata.version("torch"), "python": platform.python_version()}
    return found | ({"deepspeed": metadata.version("deepspeed")} if engine is EngineName.deepspeed else {})


def _versions(about: dict[str, Any]) -> str:
    deepspeed = f", deepspeed {about['deepspeed']}" if "deepspeed" in about else ""
    return f"torch {about['torch']}{deepspeed}, Python {about['python']}"


def _short(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _parameter(name: str) -> str:
    """Return `3.post_attention_norm` for `model.layers.3.post_attention_layernorm.weight`."""
    name = name.removeprefix("model.").removeprefix("layers.").removesuffix(".weight")
    return re.sub(r"(self_attn|mlp)\.", "", name).replace("layernorm", "norm")
