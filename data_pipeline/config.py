"""Every setting of `llama-data`: typed, with its unit, and checked as a whole before any file is read."""

import difflib
from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from typing import Any

from omegaconf import MISSING

from data_pipeline.decontaminate import Decontaminate
from data_pipeline.dedup.exact import ExactDedup
from data_pipeline.dedup.semantic import SemanticDedup
from data_pipeline.dedup.substring import SubstringDedup
from data_pipeline.dedup.survivors import KeepOrder, Prefer
from data_pipeline.dedup.url import UrlDedup
from data_pipeline.filters.c4 import C4
from data_pipeline.filters.fineweb import FineWeb
from data_pipeline.filters.gopher_quality import GopherQuality
from data_pipeline.filters.gopher_repetition import DUPLICATED_SIZES, TOP_SIZES, GopherRepetition
from data_pipeline.stages import STAGES
from llama_foundation.errors import ConfigError

MEBIBYTE = 1024 * 1024


@dataclass
class InputConfig:
    """Which files, and which of their columns are what. A column that a record lacks is null, except the text."""

    paths: list[str] = field(
        default_factory=list
    )  # files or globs (** too): .jsonl and .ndjson, plain, .gz or .zst; .parquet
    source: str | None = None  # of records without a source column; null: the file's name without its suffixes
    text_column: str = "text"
    source_column: str = "source"
    url_column: str = "url"
    date_column: str = "date"
    language_column: str = "language"
    max_line_bytes: int = 64 * MEBIBYTE  # a longer line is skipped and counted
    max_zstd_window_bytes: int = 2**31  # a frame that needs more memory than this is not read

    def check(self) -> None:
        if not self.paths:
            raise ConfigError("input.paths is empty; give files or globs: input.paths=[corpus/*.jsonl.zst]")
        _at_least("input.max_line_bytes", self.max_line_bytes, 1)
        _between("input.max_zstd_window_bytes", self.max_zstd_window_bytes, 1024, 2**31)

    def columns(self) -> dict[str, str]:
        """Return role -> column name in the files."""
        roles = ("text", "source", "url", "date", "language")
        return {role: getattr(self, f"{role}_column") for role in roles}


@dataclass
class PipelineConfig:
    """The stages, in their order, and the settings of each."""

    name: str = MISSING
    stages: list[str] = MISSING
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)
    url_dedup: UrlDedup = field(default_factory=UrlDedup)
    exact_dedup: ExactDedup = field(default_factory=ExactDedup)
    substring_dedup: SubstringDedup = field(default_factory=SubstringDedup)
    semantic_dedup: SemanticDedup = field(default_factory=SemanticDedup)
    decontaminate: Decontaminate = field(default_factory=Decontaminate)

    def check(self) -> None:
        for name in self.stages:
            if name not in STAGES:
                close = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.4)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ConfigError(f"pipeline.stages names {name!r}; {hint}Known: {', '.join(STAGES)}")
            if self.stages.count(name) > 1:
                raise ConfigError(f"pipeline.stages names {name} twice; each stage runs at most once")
        repetition = self.gopher_repetition
        for setting, sizes in (("max_top_ngrams", TOP_SIZES), ("max_duplicated_ngrams", DUPLICATED_SIZES)):
            limits = getattr(repetition, setting)
            if len(limits) != len(sizes):
                raise ConfigError(
                    f"pipeline.gopher_repetition.{setting} has {len(limits)} numbers; it needs {len(sizes)}, "
                    f"for n-grams of {', '.join(map(str, sizes))} words"
                )
        for name in self.stages:
            order = getattr(self, name)
            if isinstance(order, KeepOrder) and (order.prefer is Prefer.best_score) != (order.score is not None):
                raise ConfigError(
                    f"pipeline.{name}.prefer={order.prefer.value} and pipeline.{name}.score={order.score}: "
                    "prefer=best_score needs a score, <stage>.<score>, and nothing else does"
                )
        for name, settings in (("substring_dedup", self.substring_dedup), ("semantic_dedup", self.semantic_dedup)):
            if name in self.stages:
                settings.check()
        if "decontaminate" in self.stages:
            self.decontaminate.check()
        if self.c4.min_sentences < 0:
            raise ConfigError(f"pipeline.c4.min_sentences={self.c4.min_sentences} must be at least 0")


class TokenizerKind(Enum):
    sentencepiece = "sentencepiece"  # BPE over characters with byte fallback, as Llama 1's and 2's
    byte_level = "byte_level"  # BPE over bytes within the pieces of Llama 3's split pattern, with its special tokens


@dataclass
class TokenizerTraining:
    """Train a tokenizer of one of Llama's kinds on the kept training documents."""

    kind: TokenizerKind = TokenizerKind.sentencepiece
    vocabulary_size: int = 32_000
    character_coverage: float = 0.99995  # share of characters with a token of their own; the others become bytes
    sample_bytes: int = 100 * MEBIBYTE  # of text, chosen by keyed hash; all text where there is less
    source_weights: dict[str, float] = field(
        default_factory=dict
    )  # source -> its part of sample_bytes, relative to the others; empty: all sources alike


@dataclass
class TokenizerConfig:
    """Exactly one of both."""

    path: str | None = None  # an existing sentencepiece model, tokenizer.json or file of tiktoken ranks
    train: TokenizerTraining | None = None

    def check(self) -> None:
        if (self.path is None) == (self.train is None):
            raise ConfigError(
                f"tokenizer.path={self.path} and tokenizer.train={'null' if self.train is None else 'set'}: give one "
                "of them: tokenizer=file tokenizer.path=FILE, or tokenizer=sentencepiece_32k"
            )
        if self.train:
            smallest = 512 if self.train.kind is TokenizerKind.byte_level else 260
            _between("tokenizer.train.vocabulary_size", self.train.vocabulary_size, smallest, 2**24)
            if not 0.9 <= self.train.character_coverage <= 1:
                raise ConfigError(
                    f"tokenizer.train.character_coverage={self.train.character_coverage} must be between 0.9 and 1"
                )
            _at_least("tokenizer.train.sample_bytes", self.train.sample_bytes, 1000)
            weights = self.train.source_weights
            if weights and not (all(0 <= weight < inf for weight in weights.values()) and sum(weights.values()) > 0):
                raise ConfigError(
                    f"tokenizer.train.source_weights={dict(weights)}: every weight must be a number of at least 0, "
                    "and one of them above 0"
                )


@dataclass
class ValidationConfig:
    """Documents that are held out, chosen by keyed hash of their record id."""

    fraction: float = 0.01  # of documents, at least one; 0: none

    def check(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"validation.fraction={self.fraction} must be at least 0 and less than 1")


class EngineName(Enum):
    local = "local"


@dataclass
class DataPipelineConfig:
    """Everything `llama-data` can be told."""

    input: InputConfig = field(default_factory=InputConfig)
    output: str = ""  # directory
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    engine: EngineName = EngineName.local
    workers: int = 0  # processes; 0: one per core
    seed: int = 0  # of the keyed hashes that choose validation documents, order, samples and examples
    partition_bytes: int = 32 * MEBIBYTE  # of text that a worker holds at a time
    max_shard_bytes: int = 8 * 1024 * MEBIBYTE  # of one .bin file
    overwrite: bool = False  # replace the finished output of other settings

    def check(self) -> None:
        if not self.output:
            raise ConfigError("output is not set; add output=DIR, the directory for the shards")
        _at_least("workers", self.workers, 0)
        _at_least("partition_bytes", self.partition_bytes, 1)
        _at_least("max_shard_bytes", self.max_shard_bytes, 1)
        for section in (self.input, self.pipeline, self.tokenizer, self.validation):
            section.check()


RUNTIME_SETTINGS = ("output", "engine", "workers", "partition_bytes", "overwrite")
"""Settings that do not change a byte of the shards."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> plain value for every setting of a (nested) configuration."""
    if hasattr(value, "__dataclass_fields__"):
        flat = {}
        for each in fields(value):
            flat |= flatten(getattr(value, each.name), f"{prefix}{each.name}.")
        return flat
    return {prefix.rstrip("."): value.value if isinstance(value, Enum) else value}


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{name}={value} must be at least {low}")


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} must be between {low} and {high}")
