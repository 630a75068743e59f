"""What would other thresholds have kept? Answered from stored scores, without reading a text again.

While a run goes on, a sample of its documents (`what_if.sample_fraction`, by keyed hash of the record id) is taken
through all local stages of the preset, right after reading. They are measured and edited there, and none is dropped, so
every rule has its score of every sampled document. `OUTPUT/what_if.parquet` keeps one row per document:

    record_id, source, bytes         of the record as it was read
    <stage>.<score>                  float64, null where the rule abstains
    drop:<stage>                     the reason where the stage dropped without a threshold, else null
    edited:<stage>, bytes:<stage>    whether the text was changed, and its size after the stage

Stages that compare documents are left out of the sample: what they keep cannot be known from one document.
"""

import copy
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from rich.console import Console

from data_pipeline.batches import load_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.config import DataPipelineConfig, PipelineConfig, flatten
from data_pipeline.document import Documents, keyed_hashes, text_bytes
from data_pipeline.engines.work import Block, Commit, Task, read_block, write_blocks
from data_pipeline.filters.measure import KEEP, Measurement, decide
from data_pipeline.phases import slices
from data_pipeline.report import what_if_table
from data_pipeline.report.what_if_table import Funnel, Step
from data_pipeline.stages import STAGES, LocalStage
from llama_foundation.compose import to_object
from llama_foundation.errors import ConfigError, DataError
from llama_foundation.files import publish

NAME = "what_if"
VERSION = 1
FILE = "what_if.parquet"


@dataclass
class WhatIfConfig:
    """llama-data what-if output=DIR pipeline.<stage>.<threshold>=VALUE ..."""

    output: str = ""  # directory of a finished run
    pipeline: dict[str, Any] = field(default_factory=dict)  # stage -> threshold -> value
    json: bool = False  # print JSON instead of a table

    def check(self) -> None:
        if not self.output:
            raise ConfigError("output is not set; add output=DIR, the directory of a run")
        if not self.pipeline:
            raise ConfigError("no threshold is changed; add one: pipeline.gopher_quality.min_words=30")


def sample_phase(chain: Chain, blocks: list[Block], config: DataPipelineConfig) -> None:
    """Take the sampled documents of `blocks` through all local stages, and publish their scores beside the shards.

    The phase stands beside the chain: the stages behind it do not depend on it.
    """
    path = chain.work.parent / FILE
    pipeline, fraction = config.pipeline, config.what_if.sample_fraction
    stages = [(name, getattr(pipeline, name)) for name in pipeline.stages if isinstance(STAGES[name], LocalStage)]
    if not stages or not fraction:
        path.unlink(missing_ok=True)
        return
    versions = {name: STAGES[name].version for name, _ in stages}
    inputs = [VERSION, versions, {name: flatten(settings) for name, settings in stages}, fraction]
    payloads = [(block, stages, fraction, config.seed) for block in blocks]
    commits = copy.copy(chain).phase(NAME, inputs, sample_task, payloads, block_label)
    described = {"settings": flatten(pipeline), "versions": versions, "sample_fraction": fraction}
    with publish(path) as file:
        writer = None
        for block in all_blocks(commits):
            table = read_block(block).replace_schema_metadata({NAME: json.dumps(described)})
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is None:
            empty = pa.table({"record_id": pa.array([], pa.binary(16))})
            writer = pq.ParquetWriter(file, empty.replace_schema_metadata({NAME: json.dumps(described)}).schema)
        writer.close()


def sample_task(folder: Path, task: Task) -> Commit:
    """Measure the sampled documents of one block."""
    block, stages, fraction, seed = task.payload
    documents = load_documents(block)
    hashes = keyed_hashes(documents.batch["record_id"].to_pylist(), NAME, seed)
    chosen = documents.select(hashes <= np.uint64(min(int(fraction * 2**64), 2**64 - 1)))
    if not len(chosen):
        return Commit()
    tables = [_measured(Documents(batch), stages) for batch in slices(chosen.batch)]
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", pa.concat_tables(tables))]))


def _measured(documents: Documents, stages: list[tuple[str, Any]]) -> pa.Table:
    batch = documents.batch
    columns: dict[str, Any] = {"record_id": batch["record_id"], "source": batch["source"], "bytes": text_bytes(batch)}
    for name, settings in stages:
        measurement = STAGES[name].measure(documents, settings)
        after = documents.with_measurement(name, measurement)
        columns |= {f"{name}.{score}": pa.array(values, pa.float64()) for score, values in measurement.scores.items()}
        drops = np.full(len(documents), None, object)
        for reason, dropped in reversed(measurement.drops.items()):
            drops[dropped] = reason
        columns[f"drop:{name}"] = pa.array(drops, pa.string())
        changed = pc.not_equal(documents.batch["text"], after.batch["text"])
        was_text = pc.fill_null(pc.equal(documents.batch["content_type"], after.batch["content_type"]), True)
        columns[f"edited:{name}"] = pc.and_(changed, was_text)  # making text of HTML is no edit
        columns[f"bytes:{name}"] = text_bytes(after.batch)
        documents = after
    return pa.table(columns)


def run(config: WhatIfConfig) -> int:
    """Print the funnel with the changed thresholds beside the one as it was; return the exit status."""
    table, described = _load(Path(config.output))
    before = _pipeline(described["settings"], {})
    after = _pipeline(described["settings"], config.pipeline)
    _check_versions(described["versions"], config.output)
    changes = changed_thresholds(before, after)
    statistics = _statistics(Path(config.output))
    old, new = (funnel(table, pipeline, statistics) for pipeline in (before, after))
    if config.json:
        print(json.dumps({"changes": changes, "before": asdict(old), "after": asdict(new)}, indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        documents = sum(
            row[0] for source in statistics.get("read", {}).get("kept", {}).values() for row in source.values()
        )
        what_if_table.show(console, changes, old, new, documents)
    return 0


def changed_thresholds(before: PipelineConfig, after: PipelineConfig) -> dict[str, list[Any]]:
    """Return setting -> [old value, new value].

    Raises:
        ConfigError: a change is none of a threshold: what it does cannot be told from the scores.
    """
    old, new = flatten(before), flatten(after)
    changes = {key: [old[key], new[key]] for key in old if old[key] != new[key]}
    for key in changes:
        stage_name, _, setting = key.partition(".")
        asked = f"pipeline.{key}={new[key]}"
        if not setting:
            raise ConfigError(f"{asked}: what-if keeps the stages of the run; for other stages run llama-data again")
        if stage_name not in before.stages:
            raise ConfigError(f"{asked}: the run has no stage {stage_name}; it has {', '.join(before.stages)}")
        stage = STAGES[stage_name]
        if not isinstance(stage, LocalStage):
            raise ConfigError(
                f"{asked}: {stage_name} compares documents, so its outcome is not in the scores of single ones; "
                "run llama-data again with this setting and another output"
            )
        settings = copy.deepcopy(getattr(before, stage_name))
        target, name = settings, setting
        while "." in name:
            head, _, name = name.partition(".")
            target = getattr(target, head)
        setattr(target, name, new[key])
        if stage.rules(settings) == stage.rules(getattr(before, stage_name)):
            raise ConfigError(
                f"{asked} is no threshold of a rule of {stage_name}: it changes what is measured, and the stored "
                "scores were measured without it; run llama-data again with this setting and another output"
            )
    if not changes:
        raise ConfigError("every threshold given is what the run had; change one")
    return changes


def funnel(table: pa.Table, pipeline: PipelineConfig, statistics: dict[str, Any]) -> Funnel:
    """Return what every rule drops of the sample.

    Args:
        table: what `sample_phase` stored.
        statistics: stage -> its statistics of the real run as JSON, for the survival rates of global stages.
    """
    rows = table.num_rows
    documents, bytes_share = np.ones(rows), np.ones(rows)  # what is left of each document
    sizes = table["bytes"].to_numpy().astype(np.float64)
    sources = table["source"].to_numpy()
    basis = "exact"
    steps = []
    for name in pipeline.stages:
        stage = STAGES[name]
        seen = [float(documents.sum()), float((bytes_share * sizes).sum())]
        dropped: dict[str, list[float]] = {}
        if isinstance(stage, LocalStage):
            verdicts, reasons = decide(*_measurement(table, stage, pipeline), rows)
            for index, reason in enumerate(reasons):
                gone = verdicts == index
                tally = [float(documents[gone].sum()), float((bytes_share * sizes)[gone].sum())]
                previous = dropped.get(reason, [0.0, 0.0])
                dropped[reason] = [previous[0] + tally[0], previous[1] + tally[1]]
            documents, bytes_share = documents * (verdicts == KEEP), bytes_share * (verdicts == KEEP)
            sizes = table[f"bytes:{name}"].to_numpy().astype(np.float64)
            step_basis = basis
            if basis == "exact" and pc.any(table[f"edited:{name}"]).as_py():
                basis = f"estimate, behind the edits of {name}"
        else:
            basis = step_basis = f"estimate, {name} as in the run"
            rates = _survival(statistics.get(name), sources)
            documents, bytes_share = documents * rates[0], bytes_share * rates[1]
            dropped = {"": [seen[0] - float(documents.sum()), seen[1] - float((bytes_share * sizes).sum())]}
        kept = [float(documents.sum()), float((bytes_share * sizes).sum())]
        steps.append(Step(name, seen, dropped, kept, step_basis))
    return Funnel(rows, steps)


def _measurement(table: pa.Table, stage: LocalStage, pipeline: PipelineConfig) -> tuple[Measurement, list]:
    rules = stage.rules(getattr(pipeline, stage.name))
    missing = [rule.score for rule in rules if f"{stage.name}.{rule.score}" not in table.schema.names]
    if missing:
        raise ConfigError(
            f"{FILE} has no score {stage.name}.{missing[0]}: it was not measured with the settings of the run; run "
            "llama-data again with the new ones and another output"
        )
    scores = {rule.score: table[f"{stage.name}.{rule.score}"].to_numpy() for rule in rules}
    dropped = table[f"drop:{stage.name}"].to_numpy()
    found = sorted({reason for reason in dropped if reason is not None})
    return Measurement(scores, drops={reason: dropped == reason for reason in found}), rules


def _survival(statistics: dict[str, Any] | None, sources: np.ndarray) -> np.ndarray:
    """Return float64 [2, documents]: which part of documents and of bytes like these the stage kept in the run."""
    rates = np.ones((2, len(sources)))
    if statistics is None:
        return rates
    for source in set(sources.tolist()):
        seen, kept = (_sum(statistics[table].get(source)) for table in ("seen", "kept"))
        for place in range(2):
            rates[place, sources == source] = kept[place] / seen[place] if seen[place] else 1
    return rates


def _sum(row: dict[str, list[int]] | None) -> list[int]:
    cells = (row or {}).values()
    return [sum(cell[0] for cell in cells), sum(cell[1] for cell in cells)]


def _load(output: Path) -> tuple[pa.Table, dict[str, Any]]:
    path = output / FILE
    if not path.is_file():
        raise DataError(
            f"{path} is not there: run llama-data with output={output} and what_if.sample_fraction above 0 first "
            "(a preset without local stages has no scores)"
        )
    try:
        table = pq.read_table(path)
        described = json.loads(table.schema.metadata[NAME.encode()])
        described["sample_fraction"] = float(described["sample_fraction"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and run llama-data again") from error
    if not table.num_rows:
        raise DataError(
            f"{path} holds no document: {described['sample_fraction']:.2%} of this corpus is none; run llama-data "
            "again with a larger what_if.sample_fraction"
        )
    return table, described


def _check_versions(versions: dict[str, int], output: str) -> None:
    for name, version in versions.items():
        if STAGES[name].version != version:
            raise ConfigError(
                f"output={output} was sampled by version {version} of {name}, which is now version "
                f"{STAGES[name].version}: its scores mean something else; run llama-data again"
            )


def _pipeline(settings: dict[str, Any], changes: dict[str, Any]) -> PipelineConfig:
    base = OmegaConf.create({})
    for key, value in settings.items():
        OmegaConf.update(base, key, value, force_add=True)
    return to_object(OmegaConf.merge(base, changes), PipelineConfig)


def _statistics(output: Path) -> dict[str, Any]:
    """Return stage -> statistics as JSON; none before the run is over."""
    try:
        return {stage["stage"]: stage for stage in json.loads((output / "stats.json").read_bytes())["stages"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{output / 'stats.json'} cannot be read ({error}); run llama-data again") from error
