"""Correct the predicted speed by a measured run."""

import json
import statistics
from pathlib import Path
from typing import Any

from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError
from llama_train.config import TrainConfig
from llama_train.observe.metrics import history
from llama_train.parallel.resolve import resolve_layout
from llama_train.plan.hardware import Hardware
from llama_train.plan.recipe import stages
from llama_train.plan.settings import PlanConfig
from llama_train.plan.speed import step_time

WARM_UP = 3
"""Steps at the beginning of a run that are not counted: they compile and allocate."""


def correction(config: PlanConfig, hardware: Hardware) -> tuple[float, str]:
    """Return measured over predicted speed of the run `plan.calibrate`, and a line for people.

    The run is predicted for the same machines as the plan, with the run's own configuration and number of processes.

    Raises:
        ConfigError: there is no run.
        RunError: the run has too few steps.
    """
    path = Path(config.plan.calibrate or "")
    if path.is_file():
        measured, predicted = _benchmark(path, hardware)
    elif (path / "config.yaml").is_file():
        measured, predicted = _run(path, hardware)
    else:
        raise ConfigError(
            f"plan.calibrate={path}: neither a run directory with config.yaml and metrics.jsonl nor a result of "
            "benchmarks/gpu.py; give one of these"
        )
    factor = measured / predicted
    return factor, (
        f"calibrated by {path}: measured {measured:,.0f} tokens/s/GPU, predicted {predicted:,.0f}, "
        f"{factor:.2f} times as fast"
    )


def _run(path: Path, hardware: Hardware) -> tuple[float, float]:
    config = compose.load(path / "config.yaml", TrainConfig)
    steps = history(path / "metrics.jsonl")[WARM_UP:]
    if not steps:
        raise RunError(
            f"{path}: has no more than {WARM_UP} steps, which compile and allocate; calibrate by a longer run"
        )
    measured = statistics.median(step["tokens_per_second_per_device"] for step in steps)
    last = steps[-1]
    world = max(round(last["tokens_per_second"] / last["tokens_per_second_per_device"]), 1)
    layout = resolve_layout(config, world)
    stage = max((each for each in stages(config) if each.first_step < last["step"]), key=lambda each: each.first_step)
    time = step_time(config, layout, hardware, stage.sequence_length, stage.batch_size)
    return measured, time.tokens_per_second_per_device


def _benchmark(path: Path, hardware: Hardware) -> tuple[float, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in content["rows"]}
        results = {name: result for name, result in content["results"].items() if name in rows}
        measured = [(rows[name], _speed(result)) for name, result in results.items() if _is_ours(rows[name], result)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"plan.calibrate={path}: is no result of benchmarks/gpu.py: {error}") from error
    pairs = []
    for row, speed in measured:
        overrides = [
            "model=llama3_8b",
            "steps=1",
            "optimizer.learning_rate=1e-4",
            "engine.precision=bf16",
            "data.document_masks=false",
            f"data.sequence_length={row['sequence_length']}",
            f"data.batch_size={row['micro_batch_size']}",
            f"layout.micro_batch_size={row['micro_batch_size']}",
            "data.shards=none",
            *row["settings"],
        ]
        try:
            config = compose.compose("train", TrainConfig, overrides)
        except ConfigError as error:
            raise ConfigError(f"plan.calibrate={path}: row {row['name']}: {error}") from error
        layout = resolve_layout(config, 1)
        time = step_time(config, layout, hardware, config.data.sequence_length, config.data.batch_size)
        pairs.append((speed, time.tokens_per_second_per_device))
    if not pairs:
        raise ConfigError(f"plan.calibrate={path}: has no measured row of ours; run benchmarks/gpu.py again")
    factor = statistics.median(measured / predicted for measured, predicted in pairs)
    predicted = statistics.median(predicted for _, predicted in pairs)
    return factor * predicted, predicted


def _is_ours(row: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether a row of the benchmark is one that the plan can be held against; its values must be of their types."""
    if result.get("status") != "measured" or row["library"] != "native" or row["documents"]:
        return False
    sizes, settings = (row["sequence_length"], row["micro_batch_size"]), row["settings"]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise ValueError(f"sizes {sizes}")
    if not isinstance(settings, list) or not all(isinstance(setting, str) for setting in settings):
        raise ValueError(f"settings {settings!r}")
    return True


def _speed(result: dict[str, Any]) -> float:
    speed = result["tokens_per_second"]
    if type(speed) not in (int, float) or not 0 < speed < 1e12:
        raise ValueError(f"tokens_per_second {str(speed)[:80]}")
    return float(speed)
