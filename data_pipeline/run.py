"""Plan the partitions, run the stages of the preset in their order, write the shards; resume where it stopped.

read -> stages -> index -> tokenizer -> encode -> write -> report -> shards.json, the last of which is the commit of
the whole. What one phase does is in `phases.py` and `write.py`; how it survives a kill is in `engines/work.py`.
"""

import contextlib
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline import phases, what_if, write
from data_pipeline.chain import Chain, all_blocks, block_label, make_tasks
from data_pipeline.config import RUNTIME_SETTINGS, DataPipelineConfig, flatten
from data_pipeline.engines.local import LocalEngine
from data_pipeline.engines.work import Block, group_blocks, read_block, run_phase, total_statistics
from data_pipeline.read import plan
from data_pipeline.read.rows import NAME as READ
from data_pipeline.read.rows import VERSION as READ_VERSION
from data_pipeline.report import console as show
from data_pipeline.report.dataset_card import FILE as CARD
from data_pipeline.report.dataset_card import write_card
from data_pipeline.report.report import write_report
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.shards.writer import write_root
from data_pipeline.split import TRAIN, sample_shares, validation_limit
from data_pipeline.stages import STAGES, GlobalStage
from data_pipeline.tokenize import load_tokenizer
from llama_foundation.errors import ConfigError, DataError, RunError
from llama_foundation.files import publish, publish_json


def run(config: DataPipelineConfig) -> int:
    """Do everything that `config` asks for and is not done yet; return the exit status."""
    output = Path(config.output)
    console = Console(width=None if sys.stdout.isatty() else 120)
    files = plan.find(config.input)
    described = _describe(config, files)
    finished = _check_output(output, described, config.overwrite)
    if finished is not None:
        console.print("these shards are already finished with the same settings: nothing to do", highlight=False)
        show.summary(console, finished, output)
        return 0
    if config.tokenizer.path:
        load_tokenizer(Path(config.tokenizer.path))  # a wrong path must not cost a run
    with _locked(output), LocalEngine(config.workers) as engine:
        (output / "shards.json").unlink(missing_ok=True)
        pipeline = Pipeline(config, output, engine, console)
        statistics = pipeline.run(files)
        publish_json(output / "stats.json", {**described, "stages": [each.to_json() for each in statistics]})
        write_report(output / "report.html", config, statistics)
        if not pipeline.shard_sets:
            raise DataError(_nothing_left(statistics, output))
        write_card(output / CARD, config, statistics)
        write_root(output, pipeline.tokenizer, pipeline.shard_sets)
    show.summary(console, statistics, output)
    return 0


class Pipeline:
    """One run: the chain of phases, each of which names its folder after everything before it."""

    def __init__(self, config: DataPipelineConfig, output: Path, engine: LocalEngine, console: Console) -> None:
        self.config = config
        self.output = output
        self.chain = Chain(output / ".work", engine, console, config.seed)
        self.tokenizer: dict[str, Any] = {}
        self.shard_sets: dict[str, list[str]] = {}  # split -> sources

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
        return statistics + (self._shards(blocks) if blocks else [StageStatistics(write.NAME)])

    def choose(self, pieces: list[plan.Piece]) -> list[plan.Piece]:
        """Return the pieces to read; a forecast reads only some."""
        return pieces

    def _read(self, files: list[plan.InputFile]) -> tuple[list[Block], list[StageStatistics]]:
        settings = self.config.input
        pieces = self.choose(plan.cut(files, self.config.partition_bytes, settings))
        inputs = [asdict(settings), [asdict(file) for file in files], self.config.partition_bytes, self.config.seed]
        uncounted = [piece for piece in pieces if plan.needs_line_count(piece)]
        commits = self.chain.phase("lines", inputs, phases.count_lines_task, uncounted, lambda piece: piece.label)
        lines = {piece: commit.notes["lines"] for piece, commit in zip(uncounted, commits, strict=True)}
        pieces = plan.number_rows(pieces, lines)
        payloads = [(piece, settings, self.config.partition_bytes, self.config.seed) for piece in pieces]
        commits = self.chain.phase(READ, READ_VERSION, phases.read_task, payloads, lambda payload: payload[0].label)
        phases.check_columns([commit.notes for commit in commits], settings)
        statistics = total_statistics(commits, [READ])
        if not statistics[0].seen:
            raise DataError(f"input.paths={self.config.input.paths}: the files hold no records")
        return all_blocks(commits), statistics

    def _local(self, names: list[str], blocks: list[Block]) -> tuple[list[Block], list[StageStatistics]]:
        stages = [(name, getattr(self.config.pipeline, name)) for name in names]
        inputs = [(name, STAGES[name].version, flatten(settings)) for name, settings in stages]
        payloads = [(block, stages, self.config.seed) for block in blocks]
        commits = self.chain.phase("+".join(names), inputs, phases.local_task, payloads, block_label)
        return all_blocks(commits), total_statistics(commits, names)

    def _shards(self, blocks: list[Block]) -> list[StageStatistics]:
        config = self.config
        commits = self.chain.phase(
            "index", write.INDEX_VERSION, write.index_task, [(block, config.seed) for block in blocks], block_label
        )
        limit = validation_limit(map(read_block, all_blocks(commits)), config.validation.fraction)
        path = self._tokenizer_path(blocks, all_blocks(commits), limit)
        tokenizer = load_tokenizer(path)
        payloads = [
            write.Encoding(block, str(tokenizer.path), tokenizer.fingerprint, limit, config.seed) for block in blocks
        ]
        inputs = [write.VERSION, tokenizer.fingerprint, limit]
        encoded = self.chain.phase("encode", inputs, write.encode_task, payloads, lambda each: each.block.path)
        self._write(group_blocks(encoded), tokenizer)
        return total_statistics(encoded, [write.NAME])

    def _tokenizer_path(self, blocks: list[Block], indexes: list[Block], limit: int) -> Path:
        training, seed = self.config.tokenizer.train, self.config.seed
        if training is None:
            return Path(self.config.tokenizer.path)
        shares = sample_shares(map(read_block, indexes), limit, training.sample_bytes, training.source_weights)
        samples = [write.Sample(block, shares, limit, seed) for block in blocks]
        inputs = [{source: asdict(share) for source, share in shares.items()}, limit]
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

    def _write(self, groups: dict[str, list[Block]], tokenizer: Any) -> None:
        payloads = [
            write.ShardSet(
                tuple(blocks),
                str(self.output / group),
                tokenizer.fingerprint,
                tokenizer.vocabulary_size,
                self.config.max_shard_bytes,
            )
            for group, blocks in sorted(groups.items())
        ]
        self.chain.advance("write", [write.VERSION, self.config.max_shard_bytes])
        folder = self.chain.folder("write")
        for stale in folder.parent.glob("write-*"):
            if stale != folder:  # its shards are about to be replaced
                shutil.rmtree(stale)
        for split in {group.split("/")[0] for group in groups} | {"train", "validation"}:
            for found in (self.output / split).glob("*"):
                if f"{split}/{found.name}" not in groups:
                    shutil.rmtree(found)
        tasks = make_tasks(payloads, lambda each: each.directory)
        for task in tasks:
            if not (Path(task.payload.directory) / "manifest.json").exists():
                (folder / f"{task.name}.json").unlink(missing_ok=True)
        with show.phase(self.chain.console, "write", len(tasks)) as done:
            run_phase(self.chain.engine, folder, write.write_task, tasks, done)
        for stale in (self.output / "tokenizer").glob("tokenizer.*"):
            stale.unlink()
        with publish(self.output / "tokenizer" / tokenizer.file_name) as file:
            file.write(tokenizer.path.read_bytes())
        self.tokenizer = {
            "file": f"tokenizer/{tokenizer.file_name}",
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocabulary_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        }
        for group in sorted(groups):
            split, source = group.split("/")
            self.shard_sets.setdefault(split, []).append(source)
        assert TRAIN in self.shard_sets


def _describe(config: DataPipelineConfig, files: list[plan.InputFile]) -> dict[str, Any]:
    """Return what the shards depend on, as it is kept in stats.json."""
    settings = {key: value for key, value in flatten(config).items() if key not in RUNTIME_SETTINGS}
    versions = {name: STAGES[name].version for name in config.pipeline.stages} | {READ: READ_VERSION}
    versions[write.NAME] = write.VERSION
    return {"settings": settings, "versions": versions, "inputs": {file.path: asdict(file) for file in files}}


def _check_output(output: Path, described: dict[str, Any], overwrite: bool) -> list[StageStatistics] | None:
    """Return the statistics of a finished run with the same settings, or None when there is something to do.

    Raises:
        ConfigError: the directory holds something else, or shards made with other settings.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file; give a directory")
    if not (output / "shards.json").exists():
        if output.exists() and any(output.iterdir()) and not (output / ".work").exists():
            raise ConfigError(f"output={output} is not empty and was not made by llama-data; give another directory")
        return None
    try:
        before = json.loads((output / "stats.json").read_bytes())
        differences = [
            line for part in ("settings", "versions", "inputs") for line in _differences(before[part], described[part])
        ]
        if not differences:
            return [StageStatistics.from_json(each) for each in before["stages"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        differences = [f"stats.json cannot be read ({error})"]
    if overwrite:
        return None
    shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
    raise ConfigError(
        f"output={output} holds finished shards that were made differently: {shown}. Give another output, or "
        "overwrite=true to replace them"
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield f"{key} was {before.get(key, 'not there')}, is {now.get(key, 'not there')}"


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep a second process out of the same output; the lock goes with the process, however it ends."""
    try:
        (output / ".work").mkdir(parents=True, exist_ok=True)
        file = open(output / ".work" / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"output={output} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"output={output} is in use by another llama-data; wait for it, or give another") from error
        yield


def _nothing_left(statistics: list[StageStatistics], output: Path) -> str:
    reasons = {reason: tally[0] for stage in statistics for reason, tally in stage.reasons().items()}
    top = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{reason} {documents:,}" for reason, documents in top)
    return f"no document was kept: {told}; see {output / 'report.html'} for examples, and lower the thresholds"
