"""Plan the partitions, run the stages of the preset in their order, write the shards; resume where it stopped.

read -> stages -> index -> plan -> tokenizer -> encode -> write -> finish: tokenizer, stats.json, report and
shards.json, the last of which is the commit of the whole. What one phase does is in `phases.py` and `write.py`; how
it survives a kill is in `engines/work.py`. Nothing but tasks writes, so that several processes can go through the same
phases together (`engines/array.py`).
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline import decontaminate, phases, radix, what_if, write
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.config import DataPipelineConfig, flatten
from data_pipeline.engines.build import make_engine
from data_pipeline.engines.work import Block, Commit, Engine, Task, commit_path, total_statistics
from data_pipeline.read import plan
from data_pipeline.read.rows import NAME as READ
from data_pipeline.read.rows import VERSION as READ_VERSION
from data_pipeline.report import console as show
from data_pipeline.report.dataset_card import FILE as CARD
from data_pipeline.report.dataset_card import write_card
from data_pipeline.report.report import write_report
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.shards.writer import write_root
from data_pipeline.split import SPLITS, TRAIN, Share
from data_pipeline.stages import STAGES, GlobalStage
from data_pipeline.tokenize import load_tokenizer
from data_pipeline.warm_up import warm_up
from data_pipeline.workspace import FINISH, WORK, claim, describe, finished
from llama_foundation.errors import DataError
from llama_foundation.files import checksum_file, publish, publish_json


def run(config: DataPipelineConfig) -> int:
    """Do everything that `config` asks for and is not done yet; return the exit status."""
    output = Path(config.output).absolute()
    console = Console(width=None if sys.stdout.isatty() else 120)
    files = plan.find(config.input)
    described = describe(config, files)
    if config.tokenizer.path:
        load_tokenizer(Path(config.tokenizer.path))  # a wrong path must not cost a run
    statistics = finished(output, described)
    if statistics is None:
        show.preset(console, config.pipeline.name, config.pipeline.stages, config.pipeline.departures)
        with claim(output, config, described, console) as statistics:
            if statistics is None:
                warm_up(config.pipeline, console)
                with make_engine(config, output) as engine:
                    statistics = Pipeline(config, output, engine, console, described).run(files)
                show.summary(console, statistics, output)
                return 0
    console.print("these shards are already finished with the same settings: nothing to do", highlight=False)
    show.summary(console, statistics, output)
    return 0


class Pipeline:
    """One run: the chain of phases, each of which names its folder after everything before it."""

    def __init__(
        self, config: DataPipelineConfig, output: Path, engine: Engine, console: Console, described: dict[str, Any]
    ) -> None:
        self.config = config
        self.output = output
        self.described = described
        self.chain = Chain(output / WORK, engine, console, config.seed, described)

    def run(self, files: list[plan.InputFile]) -> list[StageStatistics]:
        """Run all phases; return the statistics of every stage in order."""
        blocks, statistics = self._read(files)
        what_if.sample_phase(self.chain, blocks, self.config)
        stages = self.config.pipeline.stages
        for is_global, names in groupby(stages, lambda name: isinstance(STAGES[name], GlobalStage)):
            for group in [[name] for name in names] if is_global else [list(names)]:
                if is_global:
                    stage = STAGES[group[0]]
                    blocks, counted = stage.run(self.chain, blocks, getattr(self.config.pipeline, stage.name))
                else:
                    blocks, counted = self._local(group, blocks)
                statistics += counted
        return self._shards(blocks, statistics)

    def choose(self, pieces: list[plan.Piece]) -> list[plan.Piece]:
        """Return the pieces to read; a forecast reads only some."""
        return pieces

    def part_count(self, size: int) -> int:
        """Return into how many ranges of the order `size` bytes of text are cut; a forecast cuts as the whole would."""
        return radix.part_count(size, self.config.partition_bytes)

    def small_ranges(self, encoded: list[Commit]) -> dict[radix.Range, list[Block]]:
        """Return the ranges of the order, each small enough to be sorted in memory."""
        return radix.small_ranges(self.chain, encoded, self.config.partition_bytes)

    def _read(self, files: list[plan.InputFile]) -> tuple[list[Block], list[StageStatistics]]:
        settings = self.config.input
        pieces = self.choose(plan.cut(files, self.config.partition_bytes, settings))
        inputs = [asdict(settings), [asdict(file) for file in files], self.config.partition_bytes, self.config.seed]
        unknown = [piece for piece in pieces if plan.needs_survey(piece, self.config.partition_bytes)]
        payloads = [(piece, self.config.partition_bytes, settings) for piece in unknown]
        commits = self.chain.phase("survey", inputs, phases.survey_task, payloads, lambda payload: payload[0].label)
        surveys = {piece: commit.notes["survey"] for piece, commit in zip(unknown, commits, strict=True)}
        pieces = plan.settle(pieces, surveys)
        payloads = [(piece, settings, self.config.partition_bytes, self.config.seed) for piece in pieces]
        commits = self.chain.phase(READ, READ_VERSION, phases.read_task, payloads, lambda payload: payload[0].label)
        phases.check_columns([commit.notes for commit in commits], settings)
        statistics = total_statistics(commits, [READ])
        if not statistics[0].seen:
            raise DataError(f"input.paths={self.config.input.paths}: the files hold no records")
        return all_blocks(commits), statistics

    def _local(self, names: list[str], blocks: list[Block]) -> tuple[list[Block], list[StageStatistics]]:
        stages = [(name, getattr(self.config.pipeline, name)) for name in names]
        inputs = [
            (name, STAGES[name].version, flatten(settings), _contents(name, settings)) for name, settings in stages
        ]
        payloads = [(block, stages, self.config.seed) for block in blocks]
        commits = self.chain.phase("+".join(names), inputs, phases.local_task, payloads, block_label)
        return all_blocks(commits), total_statistics(commits, names)

    def _shards(self, blocks: list[Block], statistics: list[StageStatistics]) -> list[StageStatistics]:
        seed = self.config.seed
        commits = self.chain.phase(
            "index", write.INDEX_VERSION, write.index_task, [(block, seed) for block in blocks], block_label
        )
        training, fraction = self.config.tokenizer.train, self.config.validation.fraction
        payload = write.Planning(tuple(all_blocks(commits)), fraction, training)
        inputs = [write.VERSION, fraction, training and flatten(training)]
        (planned,) = self.chain.phase("plan", inputs, write.plan_task, [payload], lambda _: "choosing what to hold out")
        limit, groups = planned.notes["limit"], planned.notes["groups"]
        shares = tuple(Share(**share) for share in planned.notes["shares"])
        path = self._tokenizer_path(blocks, limit, shares) if groups else None
        fingerprint = load_tokenizer(path).fingerprint if path else ""
        parts = {group: self.part_count(size) for group, size in groups.items()}
        payloads = [write.Encoding(block, str(path), fingerprint, limit, parts, seed) for block in blocks]
        inputs = [write.VERSION, radix.VERSION, fingerprint, limit, parts]
        encoded = self.chain.phase("encode", inputs, write.encode_task, payloads, lambda each: each.block.path)
        statistics += total_statistics(encoded, [write.NAME])
        if path:
            self._write(self.small_ranges(encoded), path)
        finish = Finish(self.config, str(self.output), self.described, statistics, path and str(path), sorted(groups))
        self.chain.phase(FINISH, None, finish_task, [finish], lambda _: str(self.output))
        return statistics

    def _tokenizer_path(self, blocks: list[Block], limit: int, shares: tuple[Share, ...]) -> Path:
        training = self.config.tokenizer.train
        if training is None:
            return Path(self.config.tokenizer.path).absolute()
        samples = [write.Sample(block, shares, limit, self.config.seed) for block in blocks]
        inputs = [write.VERSION, [asdict(share) for share in shares], limit]
        commits = self.chain.phase("sample", inputs, write.sample_task, samples, lambda each: each.block.path)
        payload = write.Training(tuple(all_blocks(commits)), training)
        inputs = [write.VERSION, flatten(training)]
        trained = self.chain.phase(
            "tokenizer", inputs, write.tokenizer_task, [payload], lambda _: "training the tokenizer"
        )
        path = self.chain.folder("tokenizer") / "tokenizer.model"
        if load_tokenizer(path).fingerprint != trained[0].notes["fingerprint"]:
            raise DataError(f"{path} is not what was trained; delete its folder and run the same command again")
        return path

    def _write(self, ranges: dict[radix.Range, list[Block]], path: Path) -> None:
        tokenizer = load_tokenizer(path)
        groups: dict[str, list[tuple[Block, ...]]] = {}
        for each, blocks in ranges.items():
            groups.setdefault(each.group, []).append(tuple(blocks))
        payloads = [
            write.ShardSet(
                tuple(group_ranges),
                str(self.output / group),
                tokenizer.fingerprint,
                tokenizer.vocabulary_size,
                self.config.max_shard_bytes,
            )
            for group, group_ranges in sorted(groups.items())
        ]

        def forget_what_is_gone(folder: Path, tasks: list[Task]) -> None:
            """Shards are outside of the work folder: other settings, or somebody else, may have replaced them."""
            for stale in folder.parent.glob("write-*"):
                if stale != folder:
                    shutil.rmtree(stale, ignore_errors=True)
            for task in tasks:
                if not (Path(task.payload.directory) / MANIFEST).exists():
                    commit_path(folder, task).unlink(missing_ok=True)

        inputs = [write.VERSION, self.config.max_shard_bytes]
        self.chain.phase("write", inputs, write.write_task, payloads, attrgetter("directory"), forget_what_is_gone)


@dataclass(frozen=True)
class Finish:
    """All that is left to do when the shards are written."""

    config: DataPipelineConfig
    output: str
    described: dict[str, Any]
    statistics: list[StageStatistics]
    tokenizer: str | None  # path; None where no document was kept
    groups: list[str]  # <split>/<source>


def finish_task(folder: Path, task: Task) -> Commit:
    """Write what is there once: tokenizer, statistics, report and, last of all, shards.json."""
    finish: Finish = task.payload
    output = Path(finish.output)
    publish_json(output / "stats.json", {**finish.described, "stages": [each.to_json() for each in finish.statistics]})
    contamination = None
    if decontaminate.NAME in finish.config.pipeline.stages:
        contamination = json.loads((output / decontaminate.REPORT).read_bytes())
    write_report(output / "report.html", finish.config, finish.statistics, contamination)
    if finish.tokenizer is None:
        raise DataError(_nothing_left(finish.statistics, output))
    tokenizer = load_tokenizer(Path(finish.tokenizer))
    for stale in (output / "tokenizer").glob("tokenizer.*"):
        if stale.name != tokenizer.file_name:
            stale.unlink()
    write_card(output / CARD, finish.config, finish.statistics)
    with publish(output / "tokenizer" / tokenizer.file_name) as file:
        file.write(tokenizer.path.read_bytes())
    shard_sets: dict[str, list[str]] = {}
    for group in finish.groups:
        split, source = group.split("/")
        shard_sets.setdefault(split, []).append(source)
    assert TRAIN in shard_sets
    for split in SPLITS:
        for found in (output / split).glob("*"):  # of other settings
            if found.name not in shard_sets.get(split, []):
                shutil.rmtree(found)
    described = {
        "file": f"tokenizer/{tokenizer.file_name}",
        "fingerprint": tokenizer.fingerprint,
        "vocabulary_size": tokenizer.vocabulary_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }
    write_root(output, described, shard_sets)
    return Commit()


def _contents(name: str, settings: Any) -> list[str]:
    """Return the checksums of the files that a local stage reads besides the documents."""
    return [checksum_file(file) for file in STAGES[name].files(settings)]


def _nothing_left(statistics: list[StageStatistics], output: Path) -> str:
    reasons = {reason: tally[0] for stage in statistics for reason, tally in stage.reasons().items()}
    top = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{reason} {documents:,}" for reason, documents in top)
    return f"no document was kept: {told}; see {output / 'report.html'} for examples, and lower the thresholds"
