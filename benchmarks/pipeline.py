"""Megabytes per CPU second of the data pipeline, beside datatrove on the same text in the same run.

    python -m benchmarks.pipeline FILE.jsonl [--megabytes 100] [--sections ...] [--datatrove-python VENV/bin/python]

FILE holds English documents as JSON lines with a `text`. One process, one thread, A B A B; printed are medians over
the rounds, MB are those of the text. Datatrove runs in a process of its own on the first --datatrove-megabytes, timed
from its first record on, without its imports; it is missing where no interpreter that has it is given
(pip install "datatrove[processing,multilingual]"). Sections:

    filters        read, four filters and write; target 20
    language, pii  one stage each, without reading and writing; targets 10 and 20
    growth         how the cost of `filters` grows over 1, 4 and 16 times the text, and peak memory
    deduplication  URL, exact, line and MinHash by benchmarks/deduplication.py: speed, growth, peak memory, recall
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from data_pipeline import phases
from data_pipeline.config import InputConfig, PipelineConfig
from data_pipeline.engines.memory import keep_freed_memory
from data_pipeline.engines.work import Block, Commit, Task
from data_pipeline.filters.c4 import C4
from data_pipeline.filters.fineweb import FineWeb
from data_pipeline.filters.gopher_quality import GopherQuality
from data_pipeline.filters.gopher_repetition import GopherRepetition
from data_pipeline.filters.language import Language, LanguageMode
from data_pipeline.read import plan

PARTITION_BYTES = 32 * 1024 * 1024
SECTIONS = ("filters", "language", "pii", "growth", "deduplication")
STAGES = [
    ("gopher_repetition", GopherRepetition()),
    ("gopher_quality", GopherQuality()),
    ("c4", C4(terminal_punctuation="")),  # as in FineWeb
    ("fineweb", FineWeb()),
]


@dataclass(frozen=True)
class Contestant:
    """`run(file)` returns (CPU seconds, documents kept)."""

    name: str
    run: Callable[[Path], tuple[float, int]]
    megabytes: float  # of text in its file
    file: Path


@dataclass(frozen=True)
class Section:
    """What is measured, by whom, and what ours must reach."""

    name: str
    contestants: list[Contestant]
    target: float  # MB/CPU-s


def read_and_filter(file: Path) -> tuple[float, int]:
    """Read, take through STAGES and write, by the tasks of a run."""
    with tempfile.TemporaryDirectory() as directory:
        started = time.process_time()
        folder = Path(directory)
        kept = 0
        for number, block in enumerate(_read(folder, file)):
            commit = phases.local_task(folder, Task(f"local-{number}", "", (block, STAGES, 0)))
            kept += sum(each.rows for each in commit.blocks)
        return time.process_time() - started, kept


def _read(folder: Path, file: Path) -> Iterator[Block]:
    settings = InputConfig(paths=[str(file)], language_column="lang")
    pieces = plan.cut(plan.find(settings), PARTITION_BYTES, settings)
    asked = [piece for piece in pieces if plan.needs_survey(piece, PARTITION_BYTES)]
    surveys = {piece: plan.survey(piece, PARTITION_BYTES, settings) for piece in asked}
    for number, piece in enumerate(plan.settle(pieces, surveys)):
        commit: Commit = phases.read_task(folder, Task(f"read-{number}", "", (piece, settings, PARTITION_BYTES, 0)))
        yield from commit.blocks


def one_stage(name: str) -> Callable[[Path], tuple[float, int]]:
    """Return a contestant that takes documents that were read through one stage with its default settings.

    Languages are looked for in every document, whatever the file says they are.
    """
    settings = getattr(PipelineConfig(name="", stages=[], language=Language(mode=LanguageMode.always)), name)

    def run(file: Path) -> tuple[float, int]:
        milliseconds = kept = 0
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            for number, block in enumerate(_read(folder, file)):
                commit = phases.local_task(folder, Task(f"local-{number}", "", (block, [(name, settings)], 0)))
                kept += sum(each.rows for each in commit.blocks)
                milliseconds += commit.statistics[0].cpu_milliseconds
        return milliseconds / 1000, kept

    return run


def measure_growth(whole: Path, part: Path, megabytes: float, rounds: int, directory: Path) -> None:
    """Print the exponents of the cost over 1, 4 and 16 times the text, each in a process of its own.

    The smaller texts are every 16th and every 4th document in the order of their lengths, so that long ones have the
    same part of each.
    """
    sizes, seconds, peaks = [], [], []
    for share in (16, 4, 1):
        file = directory / f"share-{share}.jsonl"
        sizes.append(cut_file(whole, file, megabytes, share))
        command = [sys.executable, "-m", "benchmarks.pipeline", str(part), "--measure", str(file)]
        measured = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(rounds)
        ]
        seconds.append(statistics.median(float(done[0]) for done in measured))
        peaks.append(f"{float(measured[0][1]):.0f}")
    exponents = [
        math.log(seconds[step + 1] / seconds[step]) / math.log(sizes[step + 1] / sizes[step]) for step in (0, 1)
    ]
    print(f"growth of filters over {', '.join(f'{size:.1f}' for size in sizes)} MB")
    print(
        f"  exponents {exponents[0]:.2f}, {exponents[1]:.2f}; target 1.05   peak memory {'/'.join(peaks)} MiB",
        flush=True,
    )


def datatrove(python: str) -> Callable[[Path], tuple[float, int]]:
    """Return a contestant that runs the same rules by datatrove in another interpreter."""

    def run(file: Path) -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as directory:
            command = [python, "-c", _DATATROVE, str(file), directory]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{python} failed:\n{done.stderr[-2000:]}")
        seconds, kept = done.stdout.split()[-2:]
        return float(seconds), int(kept)

    return run


_DATATROVE = """
import sys, time
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.text import split_into_sentences, split_into_words

split_into_words("Warm up.", "eng_Latn"), split_into_sentences("Warm up.", "eng_Latn")
file, output = sys.argv[1:]
started = time.process_time()
steps = [
    JsonlReader(file.rsplit("/", 1)[0], glob_pattern=file.rsplit("/", 1)[1], compression=None),
    GopherRepetitionFilter(),
    GopherQualityFilter(),
    C4QualityFilter(filter_no_terminal_punct=False),
    FineWebQualityFilter(char_duplicates_ratio=0.1),
    JsonlWriter(output, compression=None),
]
data = None
for step in steps:
    data = step.run(data, rank=0, world_size=1)
kept = sum(1 for _ in data)
print(time.process_time() - started, kept)
"""


def cut_file(source: Path, target: Path, megabytes: float, every: int = 1) -> float:
    """Copy the first documents of `source`, or one in so many of each length; return how many MB of text that is."""
    size = 0
    with source.open("rb") as lines, target.open("wb") as file:
        chosen = lines if every == 1 else _thinned(lines.readlines(), every)
        for line in chosen:
            file.write(line)
            size += len(json.loads(line)["text"].encode())
            if size >= megabytes * 1e6:
                break
    return size / 1e6


def _thinned(lines: list[bytes], every: int) -> list[bytes]:
    by_length = sorted(range(len(lines)), key=lambda number: len(lines[number]))
    return [lines[number] for number in sorted(by_length[every // 2 :: every])]


def measure(section: Section, rounds: int) -> None:
    """Run the contestants in turn and print their medians, and the ratio of the first to each other."""
    speeds: dict[str, list[float]] = {each.name: [] for each in section.contestants}
    kept = {}
    for _ in range(rounds):
        for each in section.contestants:
            seconds, kept[each.name] = each.run(each.file)
            speeds[each.name].append(each.megabytes / seconds)
    print(section.name)
    ours = section.contestants[0].name
    for each in section.contestants:
        middle = statistics.median(speeds[each.name])
        ratio = statistics.median(a / b for a, b in zip(speeds[ours], speeds[each.name], strict=True))
        told = f"target {section.target:g}" if each.name == ours else f"ours is {ratio:.1f} times as fast"
        print(f"  {each.name:<12} {middle:8.2f} MB/CPU-s of {each.megabytes:.1f} MB, {kept[each.name]} kept; {told}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--sections", nargs="+", default=SECTIONS, choices=SECTIONS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datatrove-python", help="an interpreter that has datatrove")
    parser.add_argument("--datatrove-megabytes", type=float, default=4.0)
    arguments = parser.parse_args()
    keep_freed_memory()  # as every worker does
    if arguments.measure:
        read_and_filter(arguments.file)  # compiles the kernels
        seconds, _ = read_and_filter(arguments.measure)
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        print(seconds, peak)
        return 0
    print(
        f"{date.today()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "pyarrow", "orjson")), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        whole, part = Path(directory) / "whole.jsonl", Path(directory) / "part.jsonl"
        megabytes = cut_file(arguments.file, whole, arguments.megabytes)
        few = cut_file(arguments.file, part, arguments.datatrove_megabytes)
        filters = [Contestant("llama-train", read_and_filter, megabytes, whole)]
        if arguments.datatrove_python:
            filters.append(Contestant("datatrove", datatrove(arguments.datatrove_python), few, part))
        else:
            print("datatrove is missing: no --datatrove-python")
        sections = {
            "filters": Section("read + Gopher repetition + Gopher quality + C4 + FineWeb + write", filters, 20.0)
        }
        for name, target in (("language", 10.0), ("pii", 20.0)):
            sections[name] = Section(name, [Contestant("llama-train", one_stage(name), megabytes, whole)], target)
        for name, section in sections.items():
            if name in arguments.sections:
                section.contestants[0].run(part)  # compiles the kernels
                measure(section, arguments.rounds)
        if "growth" in arguments.sections:
            measure_growth(whole, part, megabytes, arguments.rounds, Path(directory))
        if "deduplication" in arguments.sections:
            command = [sys.executable, str(Path(__file__).with_name("deduplication.py")), str(whole)]
            command += ["--megabytes", str(megabytes), "--rounds", str(arguments.rounds)]
            if arguments.datatrove_python:
                command += ["--datatrove-python", arguments.datatrove_python]
                command += ["--datatrove-megabytes", str(arguments.datatrove_megabytes)]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
