"""How long, how much memory and how much disk the whole will take, from running a small part of it.

The pipeline runs on two samples of the input, the smaller one within the larger, with one worker and a temporary output
beside the real one. Whole pieces of files are taken, chosen by hash. Each phase is then scaled by how it grows:

    linear      with the bytes of input
    survivors   the same for what comes after a deduplication; nobody knows before how many documents survive, since a
                larger corpus has more copies. The interval begins at the power of the input that the two samples show,
                less `_UNSEEN`, and ends at linear
    capped      by tokenizer.train.sample_bytes: linear until there is enough text, constant from there
    buckets     linear, and memory grows until a bucket is full

The exponent of each phase, between the two samples, is shown beside the law: where it says something else, trust
neither.
"""

import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console
from rich.table import Table

from data_pipeline.chain import ROWS_PER_BUCKET
from data_pipeline.config import MEBIBYTE, DataPipelineConfig
from data_pipeline.engines.local import LocalEngine
from data_pipeline.read import plan
from data_pipeline.report.statistics import StageStatistics, total
from data_pipeline.sampled import MeteredChain, SampledPipeline, Use, size_of
from data_pipeline.split import SPLITS
from data_pipeline.stages import STAGES, GlobalStage
from data_pipeline.workspace import describe
from llama_foundation.errors import ConfigError, DataError

_UNSEEN = 0.05  # assumed: what a larger corpus may lose more, as an exponent; a factor 0.8 at 100 times the sample
_MEASURABLE = 0.2  # CPU seconds; below, an exponent is noise
_AFTER_SAMPLE = ("sample", "tokenizer")
_ONE_TASK = ("tokenizer", "plan", "finish")


@dataclass
class ForecastSettings:
    """The samples."""

    fraction: float = 0.01  # of the input's bytes in the larger sample; the smaller one has half of it
    minimum_bytes: int = 64 * MEBIBYTE  # of input files, where there are as many

    def check(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise ConfigError(f"forecast.fraction={self.fraction} must be above 0 and at most 0.5")
        if self.minimum_bytes < 0:
            raise ConfigError(f"forecast.minimum_bytes={self.minimum_bytes} must be at least 0")


@dataclass
class ForecastConfig(DataPipelineConfig):
    """llama-data forecast with the settings of the run; `workers` are those that the run will have."""

    forecast: ForecastSettings = field(default_factory=ForecastSettings)
    json: bool = False  # print JSON instead of a table

    def check(self) -> None:
        super().check()
        self.forecast.check()


@dataclass
class Sample:
    """A finished run over a part of the input."""

    input_bytes: float
    tasks: float  # that read it
    documents: int
    kept_bytes: int
    uses: dict[str, Use]  # phase -> what it took, in the order of the phases


@dataclass
class Expected:
    """A phase over the whole input; pairs are from ... to."""

    phase: str
    law: str
    exponent: float | None  # of CPU time, between the two samples
    cpu_hours: list[float]
    hours: list[float]  # with the workers asked for
    peak_bytes: int  # per worker
    disk_bytes: list[float]


def forecast(config: ForecastConfig) -> int:
    """Print what the whole run will take; return the exit status."""
    files = plan.find(config.input)
    sizes = piece_sizes(plan.cut(files, config.partition_bytes, config.input))
    larger, smaller = choose(sizes, config)
    measured = []
    for number, chosen in enumerate((smaller, smaller, larger)):  # once to warm up: compiled kernels, caches
        told = f"sample of {sum(sizes[piece] for piece in chosen) / 1e6:,.1f} MB"
        print(f"{told}, to warm up" if number == 0 else told, file=sys.stderr)
        measured.append(_run(config, files, chosen, sizes))
    workers = LocalEngine(config.workers).workers
    tasks = task_count(sizes, sizes, config)
    phases = expect(measured[1], measured[2], sum(sizes.values()), tasks, workers, config)
    if config.json:
        print(
            json.dumps({"workers": workers, "samples": [asdict(s) for s in measured[1:]], **_totals(phases)}, indent=2)
        )
    else:
        _show(phases, measured[1:], sum(sizes.values()), workers)
    return 0


def piece_sizes(pieces: list[plan.Piece]) -> dict[plan.Piece, float]:
    """Return piece -> bytes of its file: its range where pieces are ranges, else an equal part."""
    of_file: dict[str, list[plan.Piece]] = {}
    for piece in pieces:
        of_file.setdefault(piece.file.path, []).append(piece)
    sizes = {}
    for own in of_file.values():
        ranges = sum(piece.end - piece.start for piece in own) == own[0].file.size
        sizes |= {piece: piece.end - piece.start if ranges else piece.file.size / len(own) for piece in own}
    return sizes


def choose(sizes: dict[plan.Piece, float], config: ForecastConfig) -> tuple[list[plan.Piece], list[plan.Piece]]:
    """Return the pieces of the larger sample and, a part of it, of the smaller.

    Raises:
        ConfigError: there are too few pieces for two samples.
    """
    if len(sizes) < 2:
        raise ConfigError(
            f"the input is {len(sizes)} piece, and a forecast compares two samples: give more files, or a smaller "
            f"partition_bytes (now {config.partition_bytes}); compressed files are one piece each"
        )
    key = xxhash.xxh3_64_intdigest(f"forecast\0{config.seed}".encode())
    order = sorted(sizes, key=lambda piece: xxhash.xxh3_64_intdigest(f"{piece.file.path}\0{piece.start}".encode(), key))
    wanted = max(
        config.forecast.fraction * sum(sizes.values()), min(config.forecast.minimum_bytes, sum(sizes.values()) / 2)
    )
    samples = []
    for goal in (wanted, wanted / 2):
        chosen: list[plan.Piece] = []
        while sum(sizes[piece] for piece in chosen) < goal:
            chosen.append(order[len(chosen)])
        samples.append(chosen)
    if len(samples[0]) == len(samples[1]):
        samples[0] = order[: len(samples[1]) + 1]
    return samples[0], samples[1]


def task_count(pieces: Iterable[plan.Piece], sizes: dict[plan.Piece, float], config: DataPipelineConfig) -> float:
    """Return how many tasks read `pieces`: one each, or as many as a large one is cut into."""
    return sum(max(1.0, sizes[piece] / config.partition_bytes) for piece in pieces)


def _run(config: ForecastConfig, files: list[Any], chosen: list[plan.Piece], sizes: dict[plan.Piece, float]) -> Sample:
    place = Path(config.output).absolute().parent
    while not place.is_dir():
        place = place.parent
    config = copy.deepcopy(config)
    folder = Path(tempfile.mkdtemp(prefix="llama-data-forecast-", dir=place))
    try:
        while True:
            pipeline = SampledPipeline(config, folder, LocalEngine(1), Console(quiet=True), describe(config, files))
            pipeline.chosen = frozenset(chosen)
            pipeline.factor = sum(sizes.values()) / sum(sizes[piece] for piece in chosen)
            pipeline.chain = MeteredChain(pipeline.chain)
            try:
                statistics = pipeline.run(files)
                break
            except DataError as error:
                training = config.tokenizer.train
                if training is None or "is too large for this text" not in str(error):
                    raise
                training.vocabulary_size //= 2  # a sample has fewer words; it costs about the same
                shutil.rmtree(folder / ".work")
        uses = pipeline.chain.uses
        uses["write"].disk_bytes += sum(size_of(folder / split) for split in SPLITS)
        size, tasks = sum(sizes[piece] for piece in chosen), task_count(chosen, sizes, config)
        return Sample(size, tasks, total(statistics[0].seen)[0], _kept(statistics), uses)
    finally:
        shutil.rmtree(folder)


def _kept(statistics: list[StageStatistics]) -> int:
    return total(statistics[-1].kept)[1]


def expect(
    small: Sample, large: Sample, whole: float, tasks: float, workers: int, config: DataPipelineConfig
) -> list[Expected]:
    """Scale every phase up to `whole` bytes of input, read by `tasks` tasks."""
    factor = whole / large.input_bytes
    growth = log(large.input_bytes / small.input_bytes)
    global_stages = [name for name in config.pipeline.stages if isinstance(STAGES[name], GlobalStage)]
    survivors = log(large.kept_bytes / small.kept_bytes) / growth if small.kept_bytes and large.kept_bytes else 1.0
    fewest = factor ** (min(survivors, 1.0) - _UNSEEN)
    seen_global = False
    expected = []
    for name, use in large.uses.items():
        before = small.uses.get(name)
        scale, law = [factor, factor], "linear"
        if seen_global:
            scale, law = [min(fewest, factor), factor], "survivors"
        stage = next((each for each in global_stages if name == each or name.startswith(f"{each}.")), None)
        seen_global |= stage is not None and name == stage  # its last phase has its own name
        peak = use.peak_bytes
        if name in _AFTER_SAMPLE and config.tokenizer.train:
            cap, law = config.tokenizer.train.sample_bytes, "capped"
            scale = [min(large.kept_bytes * each, cap) / max(min(large.kept_bytes, cap), 1) for each in scale]
        elif stage and name != stage:
            law = "buckets" if law == "linear" else "survivors, buckets"
            fill = min(factor, max(ROWS_PER_BUCKET / max(large.documents, 1), 1))
            base = min(each.peak_bytes for each in large.uses.values())
            peak = int(base + (peak - base) * fill)
        measurable = before is not None and before.cpu_seconds >= _MEASURABLE
        exponent = log(use.cpu_seconds / before.cpu_seconds) / growth if measurable and use.cpu_seconds else None
        parallel = 1 if name in _ONE_TASK else workers
        cpu = [use.cpu_seconds * each / 3600 for each in scale]
        # what a task commits about itself does not grow with its documents
        commits = use.commit_bytes * (1 if name in _ONE_TASK else tasks / large.tasks)
        disk = [use.disk_bytes * each + commits for each in scale]
        expected.append(Expected(name, law, exponent, cpu, [each / parallel for each in cpu], peak, disk))
    return expected


def _totals(phases: list[Expected]) -> dict[str, Any]:
    sums = {
        name: [sum(getattr(phase, name)[end] for phase in phases) for end in range(2)]
        for name in ("cpu_hours", "hours", "disk_bytes")
    }
    return {
        "phases": [asdict(phase) for phase in phases],
        **sums,
        "peak_bytes": max(phase.peak_bytes for phase in phases),
    }


def _show(phases: list[Expected], samples: list[Sample], whole: float, workers: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else 130)
    sizes = " and ".join(f"{sample.input_bytes / 1e6:,.1f} MB" for sample in samples)
    share = samples[-1].input_bytes / whole
    console.print(f"{whole / 1e6:,.1f} MB of input, from samples of {sizes} ({share:.1%})", highlight=False)
    table = Table()
    for name in ("phase", "grows", "exponent", "CPU hours", f"hours, {workers} workers", "MB of memory", "GB of disk"):
        table.add_column(name, justify="left" if name in ("phase", "grows") else "right")
    for each in phases:
        exponent = "-" if each.exponent is None else f"{each.exponent:.2f}"
        cells = [_span(each.cpu_hours), _span(each.hours), f"{each.peak_bytes / 1e6:,.0f}"]
        table.add_row(each.phase, each.law, exponent, *cells, _span([size / 1e9 for size in each.disk_bytes]))
    sums = _totals(phases)
    table.add_section()
    cells = [_span(sums["cpu_hours"]), _span(sums["hours"]), f"{sums['peak_bytes'] / 1e6:,.0f}"]
    table.add_row("all", "", "", *cells, _span([size / 1e9 for size in sums["disk_bytes"]]))
    console.print(table)
    console.print(
        "Hours are CPU hours over workers: they hold where disks keep up and every worker has a core of its own. "
        "Memory is per worker.",
        highlight=False,
    )


def _span(pair: list[float]) -> str:
    low, high = (f"{value:,.3g}" for value in pair)
    return low if low == high else f"{low} to {high}"
