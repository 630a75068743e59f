"""What a proof prints: rows of at most 100 columns, Markdown, JSON."""

import dataclasses
import datetime
import platform
import re
from importlib import metadata
from typing import Any

from llama_train.prove.harness import Differences
from llama_train.prove.proof import SPREAD_TIMES, Outcome

_FORMAT = "{:<38} {:<6} {:>5} {:>5} {:<21} {:>5} {:>5} {:>3} {:<4}"
HEADING = _FORMAT.format("layout", "engine", "loss", "grad", "worst parameter", "norm", "wght", "s", "")

SPREAD = f"{SPREAD_TIMES:.0f} times what one process differs from itself in other micro-batches and in float64"


def row(outcome: Outcome) -> str:
    """Return a line of the table."""
    d = outcome.differences or Differences(*[float("nan")] * 4)
    numbers = [_short(value) for value in (d.loss, d.gradient, d.norm, d.weight)]
    loss, gradient, norm, weight = numbers
    verdict = "pass" if outcome.passed else "FAIL"
    return _FORMAT.format(
        outcome.case,
        outcome.engine,
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
        f"`llama-prove prove.matrix={about['matrix']} prove.precision={about['precision']}` on {about['date']}, torch "
        f"{about['torch']}, Python {about['python']}, {about['device']}: {about['model']} shrunk to {about['shrunk']}. "
        f"{passed} of {len(outcomes)} passed, in {about['seconds'] / 60:.0f} minutes.",
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


def versions() -> dict[str, str]:
    """Return the day and the versions that a result belongs to."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "torch": metadata.version("torch"), "python": platform.python_version()}


def _short(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _parameter(name: str) -> str:
    """Return `3.post_attention_norm` for `model.layers.3.post_attention_layernorm.weight`."""
    name = name.removeprefix("model.").removeprefix("layers.").removesuffix(".weight")
    return re.sub(r"(self_attn|mlp)\.", "", name).replace("layernorm", "norm")
