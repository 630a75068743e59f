"""The recipe over time: stages, tokens, hours, energy, disk."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.model.size import parameter_count, training_bytes
from llama_train.optimizer.schedule import learning_rate
from llama_train.plan.settings import PlanSettings


@dataclass(frozen=True)
class Stage:
    """Steps with one batch size, one sequence length and one mixture."""

    first_step: int  # counted from 0
    steps: int
    batch_size: int  # sequences
    sequence_length: int
    sources: dict[str, float]

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


def stages(config: TrainConfig) -> list[Stage]:
    """Return the stages that the run reaches."""
    data = config.data
    begins = [0, *(segment.from_step for segment in data.segments if segment.from_step < config.steps), config.steps]
    batch_size, length, sources = data.batch_size, data.sequence_length, data.sources
    found = [Stage(0, begins[1], batch_size, length, sources)]
    for number, segment in enumerate(data.segments[: len(begins) - 2]):
        batch_size, length = segment.batch_size or batch_size, segment.sequence_length or length
        sources = sources if segment.sources is None else segment.sources
        first = begins[number + 1]
        found.append(Stage(first, begins[number + 2] - first, batch_size, length, sources))
    return found


def steps_of_budget(config: TrainConfig, tokens: float) -> int:
    """Return how many whole steps a budget of tokens lasts, through the stages of the recipe.

    Raises:
        ConfigError: not for one.
    """
    left, first = tokens, next(iter(stages(config))).batch_tokens
    if tokens < first:
        raise ConfigError(
            f"plan.tokens={tokens:g} is less than one batch of {first:,} tokens (data.batch_size × "
            f"data.sequence_length); use at least {first}, or a smaller data.batch_size"
        )
    done = 0
    for stage in stages(replace(config, steps=sys.maxsize)):
        steps = min(int(left // stage.batch_tokens), stage.steps)
        done, left = done + steps, left - steps * stage.batch_tokens
        if steps < stage.steps:
            break
    return done


def main_stage(config: TrainConfig) -> Stage:
    """Return the stage with the most tokens."""
    return max(stages(config), key=lambda stage: stage.tokens)


def key_steps(config: TrainConfig) -> list[tuple[str, int]]:
    """Return the steps at which the learning rate is told: (why, step counted from 0)."""
    steps = {0: "first step"}
    if 0 < config.schedule.warmup_steps < config.steps:
        steps[config.schedule.warmup_steps - 1] = "end of warm-up"
    for stage in stages(config)[1:]:
        steps.setdefault(stage.first_step, "next stage")
    steps.setdefault(config.steps // 2, "half of the steps")
    steps[config.steps - 1] = "last step"
    return [(why, step) for step, why in sorted(steps.items())]


def rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step."""
    return learning_rate(step, config.optimizer.learning_rate, config.schedule, config.steps)


@dataclass(frozen=True)
class SourceUse:
    """How much of a source a run reads."""

    name: str
    tokens: float
    epochs: float | None  # None: no shards were given


def sources(config: TrainConfig) -> list[SourceUse]:
    """Return the tokens read of every source, and against the shards' real counts how often each is seen.

    Raises:
        DataError: there are no shards where data.shards says.
        ConfigError: a weight is for a source that the shards do not have.
    """
    counts: dict[str, int] = {}
    if config.data.shards:
        from data_pipeline.shards.reader import open_root

        root = open_root(Path(config.data.shards), verify=False)
        counts = {name: root.open("train", name).manifest.tokens for name in root.sources("train")}
    read: dict[str, float] = {}
    for stage in stages(config):
        weights = {name: weight for name, weight in stage.sources.items() if weight > 0} or dict(counts)
        for name, weight in weights.items():
            if counts and name not in counts:
                raise ConfigError(
                    f"data.sources.{name} is not a source of {config.data.shards}; known: {', '.join(counts)}"
                )
            read[name] = read.get(name, 0.0) + stage.tokens * weight / sum(weights.values())
    return [SourceUse(name, tokens, tokens / counts[name] if counts else None) for name, tokens in read.items()]


@dataclass(frozen=True)
class Bill:
    """What the whole run takes."""

    tokens: int
    gpu_hours: float
    days: float
    mwh: float
    tco2e: float
    price: float | None
    checkpoint_bytes: int
    checkpoints: int  # kept at once, one being written included
    shard_bytes: int  # of the tokens, each read once


def energy(gpu_hours: float, watts: float, pue: float, kg_per_kwh: float) -> tuple[float, float]:
    """Return (MWh, tCO2e): GPU-hours × watts × PUE, and 0.385 kg per kWh ("LLaMA", section 6 and table 15)."""
    mwh = gpu_hours * watts * pue / 1e6
    return mwh, mwh * kg_per_kwh


def bill(config: TrainConfig, settings: PlanSettings, watts: float, devices: int, seconds: float) -> Bill:
    """Add everything up.

    Args:
        seconds: of the whole run.
    """
    hours = seconds / 3600 * devices
    mwh, tons = energy(hours, watts, settings.pue, settings.kg_co2e_per_kwh)
    checkpoint = config.checkpoint
    kept = config.steps // checkpoint.keep_every if checkpoint.keep_every else 0
    tokens = sum(stage.tokens for stage in stages(config))
    return Bill(
        tokens=tokens,
        gpu_hours=hours,
        days=seconds / 86400,
        mwh=mwh,
        tco2e=tons,
        price=None if settings.price_per_gpu_hour is None else hours * settings.price_per_gpu_hour,
        checkpoint_bytes=training_bytes(config.model).checkpoint,
        checkpoints=checkpoint.keep_last + kept + 1,
        shard_bytes=tokens * (2 if config.model.vocab_size <= 65536 else 4),
    )


def timeline(config: TrainConfig, points: int = 400) -> Iterator[tuple[float, Stage, float]]:
    """Yield (tokens seen, stage, learning rate) along the run, for a picture."""
    seen = 0
    every = max(config.steps // points, 1)
    for stage in stages(config):
        last = stage.first_step + stage.steps - 1
        steps = sorted({*range(stage.first_step, last, every), last, *_warm_up(config, stage)})
        for step in steps:
            yield seen + (step - stage.first_step) * stage.batch_tokens, stage, rate(config, step)
        seen += stage.tokens


def _warm_up(config: TrainConfig, stage: Stage) -> list[int]:
    end = config.schedule.warmup_steps - 1
    return [end] if stage.first_step <= end < stage.first_step + stage.steps else []


def draw(config: TrainConfig, path: Path) -> None:
    """Draw batch size, sequence length and learning rate over the tokens seen."""
    from matplotlib.figure import Figure

    points = list(timeline(config))
    tokens = [seen / 1e9 for seen, _, _ in points]
    figure = Figure(figsize=(8, 6))
    rows = (
        ("batch [million tokens]", [stage.batch_tokens / 1e6 for _, stage, _ in points], "steps-post"),
        ("sequence [tokens]", [stage.sequence_length for _, stage, _ in points], "steps-post"),
        ("learning rate", [value for _, _, value in points], "default"),
    )
    all_axes = figure.subplots(3, 1, sharex=True)
    for axes, (label, values, style) in zip(all_axes, rows, strict=True):
        axes.plot(tokens, values, drawstyle=style)
        axes.set_ylabel(label)
        axes.set_ylim(0, max(values) * 1.1)
        axes.grid(alpha=0.3)
    all_axes[0].set_title(f"{config.model.name}: {parameter_count(config.model) / 1e9:,.1f} B parameters")
    all_axes[-1].set_xlabel("tokens seen [billion]")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
