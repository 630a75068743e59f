"""llama-data check-dedup <the settings of a run>: what its deduplications find of copies planted in your own data.

A sample of the input is deduplicated as the preset says. Copies of what is left, with known shares of their words
edited, are planted in it, and it is deduplicated again: what goes then are the copies, or mistakes.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from rich.console import Console

from data_pipeline import check_dedup_report, phases
from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.config import MEBIBYTE, DataPipelineConfig
from data_pipeline.document import Documents, keyed_hashes, text_bytes
from data_pipeline.engines.local import LocalEngine
from data_pipeline.engines.work import Block, Task
from data_pipeline.plant import jaccard, plant, s_curve, shingles
from data_pipeline.read import plan
from data_pipeline.stages import STAGES
from llama_foundation.compose import main as command
from llama_foundation.errors import ConfigError, DataError

CHECKED = ("exact_dedup", "line_dedup", "minhash_dedup", "substring_dedup", "semantic_dedup")
"""Stages that compare texts. URLs of copies are not planted."""

EDITING = ("line_dedup", "substring_dedup")
"""Those that cut texts: a text that goes is one of which nothing is left, not a copy."""


@dataclass
class Planted:
    """How much of the input is looked at, and what is planted in it."""

    rates: list[float] = field(default_factory=lambda: [0.0, 0.01, 0.02, 0.03, 0.05, 0.1])  # share of words edited
    copies: int = 100  # for each rate, each of another document
    min_words: int = 50  # shorter documents are not copied: a single word is a large share of them
    sample_bytes: int = 20 * MEBIBYTE  # of text; pieces of the input chosen by hash
    report: str = "dedup-check.html"  # file to write

    def check(self) -> None:
        """Refuse rates that are no shares, and numbers that are too small."""
        if not self.rates or not all(0 <= rate <= 1 for rate in self.rates):
            raise ConfigError(f"planted.rates={list(self.rates)}: give shares between 0 and 1")
        for name, low in (("copies", 1), ("min_words", 1), ("sample_bytes", 1000)):
            if getattr(self, name) < low:
                raise ConfigError(f"planted.{name}={getattr(self, name)} must be at least {low}")


@dataclass
class DedupCheckConfig(DataPipelineConfig):
    """A run's settings, and what to plant; output and tokenizer are not used."""

    planted: Planted = field(default_factory=Planted)

    def check(self) -> None:
        """Refuse what a run would refuse, and a preset without anything to check."""
        for section in (self.input, self.pipeline, self.planted):
            section.check()
        if not any(name in CHECKED for name in self.pipeline.stages):
            raise ConfigError(
                f"pipeline.stages={list(self.pipeline.stages)} has no deduplication to check; add one of "
                f"{', '.join(name for name in CHECKED if name in STAGES)}"
            )


@dataclass(frozen=True)
class Rate:
    """What became of the copies with one share of edited words."""

    rate: float
    copies: int
    jaccard: float  # mean similarity to the originals
    expected: float | None  # share of pairs that the bands should find, similar enough to be verified
    found: dict[str, int]  # stage -> pairs of which one is gone when it is done
    words: int  # of the copies
    words_left: int  # of the copies, when all stages are done; words of the originals count as theirs


@dataclass(frozen=True)
class Check:
    """The outcome: one row per rate, and how many documents went for nothing."""

    documents: int
    rates: list[Rate]
    dropped: int  # by stages that drop copies
    wrong: list[bytes]  # record ids among them without a planted copy or any document that is similar enough
    bands: int | None
    rows: int | None
    min_jaccard: float

    @property
    def precision(self) -> float:
        return 1 - len(self.wrong) / self.dropped if self.dropped else 1.0


def main() -> int:
    """Run llama-data check-dedup; return the exit status."""
    return command("data_check_dedup", DedupCheckConfig, check_dedup)


def check_dedup(config: DedupCheckConfig) -> int:
    """Plant copies, deduplicate, and tell what was found: on the console and as `planted.report`."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="llama-data-") as folder:
        checked = run_check(config, Path(folder))
    check_dedup_report.show(console, checked)
    check_dedup_report.write(Path(config.planted.report), checked)
    console.print(f"report: {config.planted.report}", highlight=False, soft_wrap=True)
    return 0


def run_check(config: DedupCheckConfig, folder: Path) -> Check:
    """Return what the deduplications of the preset do to a sample with planted copies.

    Raises:
        DataError: the sample has no document long enough to be copied for every rate.
    """
    stages = [name for name in config.pipeline.stages if name in CHECKED]
    own = config.planted
    rates = sorted(set(own.rates))
    sample = write_documents(folder / "sample.arrow", read_sample(config, folder / "read"))
    (*_, clean), _ = _deduplicate(config, stages, sample, folder / "clean")
    originals = Documents(_joined(clean))
    copies, planted = plant(originals, rates, own.copies, own.min_words, config.seed)
    if not planted:
        raise DataError(
            f"the sample has {len(originals)} documents left, too few of at least planted.min_words={own.min_words} "
            f"words to copy one for each of {len(rates)} rates; raise planted.sample_bytes or lower planted.min_words"
        )
    blocks = [*clean, *write_documents(folder / "copies.arrow", copies)]
    before = _texts(blocks)
    outputs, _ = _deduplicate(config, stages, blocks, folder / "planted")
    left = {stage: _texts(output) for stage, output in zip(stages, outputs, strict=True)}
    minhash = getattr(config.pipeline, "minhash_dedup", None) if "minhash_dedup" in stages else None
    size = getattr(minhash, "words", 5)
    least = getattr(minhash, "min_jaccard", 0.6)
    shape = (minhash.bands, minhash.rows) if minhash else (None, None)
    told = [
        _rate(
            rate, {copy: original for copy, (original, own_rate) in planted.items() if own_rate == rate}, before, left
        )
        for rate in rates
    ]
    similar = {
        copy: jaccard(shingles(before[copy], size), shingles(before[original], size))
        for copy, (original, _) in planted.items()
    }
    rows = []
    for row in told:
        values = [similar[copy] for copy, (_, rate) in planted.items() if rate == row["rate"]]
        expected = None
        if minhash:
            expected = float(np.mean([s_curve(s, *shape) if s >= least else 0.0 for s in values]))
        rows.append(Rate(**row, jaccard=float(np.mean(values)), expected=expected))
    gone = dropped_as_copies(stages, before, left)
    return Check(len(before), rows, len(gone), unjustified(gone, before, planted, size, least), *shape, least)


def read_sample(config: DedupCheckConfig, folder: Path) -> Documents:
    """Read pieces of the input, chosen by hash, until there are `planted.sample_bytes` of text.

    Raises:
        DataError: the files hold no records.
    """
    own = config.planted
    partition_bytes = max(1, min(config.partition_bytes, own.sample_bytes // 8))
    pieces = plan.cut(plan.find(config.input), partition_bytes, config.input)
    pieces.sort(key=lambda piece: xxhash.xxh3_128_digest(f"{piece.file.path}\0{piece.start}".encode(), config.seed))
    batches: list[pa.RecordBatch] = []
    size = 0
    for number, piece in enumerate(pieces):
        if size >= own.sample_bytes:
            break
        payload = (piece, config.input, partition_bytes, config.seed)
        commit = phases.read_task(folder, Task(f"{number:06d}", piece.label, payload))
        for block in commit.blocks:
            batch = load_documents(block).batch
            order = np.argsort(keyed_hashes(batch["record_id"].to_pylist(), "check_dedup", config.seed), kind="stable")
            sizes = np.cumsum(text_bytes(batch)[order])
            count = int(np.searchsorted(sizes, own.sample_bytes - size)) + 1
            batches.append(batch.take(pa.array(order[:count])))
            size += int(sizes[:count][-1])
            if size >= own.sample_bytes:
                break
    if not batches:
        raise DataError(f"input.paths={list(config.input.paths)}: the files hold no records")
    return Documents(_distinct(pa.Table.from_batches(batches)))


def _distinct(table: pa.Table) -> pa.RecordBatch:
    """Number the records anew: rows of a piece count from its start, and two pieces may have the same ones."""
    names = [xxhash.xxh3_128_digest(f"sample {number}".encode()) for number in range(table.num_rows)]
    table = table.set_column(0, table.schema.field(0), pa.array(names, pa.binary(16)))
    return table.combine_chunks().to_batches()[0]


def _deduplicate(
    config: DedupCheckConfig, stages: Sequence[str], blocks: list[Block], folder: Path
) -> tuple[list[list[Block]], list[Any]]:
    """Run the stages one after the other; return the blocks after each, and the statistics."""
    outputs, statistics = [], []
    with LocalEngine(config.workers) as engine:
        chain = Chain(folder, engine, Console(quiet=True), config.seed)
        for name in stages:
            blocks, counted = STAGES[name].run(chain, blocks, getattr(config.pipeline, name))
            outputs.append(blocks)
            statistics += counted
    return outputs, statistics


def _joined(blocks: list[Block]) -> pa.RecordBatch:
    table = pa.Table.from_batches([load_documents(block).batch for block in blocks])
    return table.combine_chunks().to_batches()[0]


def _texts(blocks: list[Block]) -> dict[bytes, str]:
    batches = [load_documents(block).batch for block in blocks]
    return {
        name: text
        for batch in batches
        for name, text in zip(batch["record_id"].to_pylist(), batch["text"].to_pylist(), strict=True)
    }


def _rate(
    rate: float, pairs: dict[bytes, bytes], before: dict[bytes, str], left: dict[str, dict[bytes, str]]
) -> dict[str, Any]:
    found = {
        stage: sum(copy not in texts or original not in texts for copy, original in pairs.items())
        for stage, texts in left.items()
    }
    after = list(left.values())[-1]
    words = sum(len(before[copy].split()) for copy in pairs)
    remaining = sum(
        max(0, len(after.get(copy, "").split()) + len(after.get(original, "").split()) - len(before[original].split()))
        for copy, original in pairs.items()
    )
    return {"rate": rate, "copies": len(pairs), "found": found, "words": words, "words_left": remaining}


def dropped_as_copies(stages: Sequence[str], before: dict[bytes, str], left: dict[str, dict[bytes, str]]) -> set[bytes]:
    """Return the record ids that went in stages which drop copies."""
    gone: set[bytes] = set()
    texts = before
    for stage in stages:
        if stage not in EDITING:
            gone |= texts.keys() - left[stage].keys()
        texts = left[stage]
    return gone


def unjustified(
    gone: set[bytes], texts: dict[bytes, str], planted: dict[bytes, tuple[bytes, float]], size: int, least: float
) -> list[bytes]:
    """Return who went without a reason: neither one of a planted pair whose other half stayed, nor similar by at least
    `least` to any document but its planted other half."""
    other = {copy: original for copy, (original, _) in planted.items()}
    other |= {original: copy for copy, original in other.items()}
    suspects = {name: shingles(texts[name], size) for name in gone if name not in other or other[name] in gone}
    # of a pair that is gone altogether, one half needs another reason
    for name in [name for name in suspects if name in other and name in planted]:
        del suspects[name]
    for name, text in texts.items():
        if not suspects:
            break
        own = shingles(text, size)
        for suspect in [each for each in suspects if each != name and other.get(each) != name]:
            if jaccard(suspects[suspect], own) >= least:
                del suspects[suspect]
    return sorted(suspects)


if __name__ == "__main__":
    sys.exit(main())
