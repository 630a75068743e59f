"""Every setting of `llama-data`: typed, with its unit, and checked as a whole before any file is read."""

import difflib
import re
from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from typing import Any

from omegaconf import MISSING

from data_pipeline.decontaminate import Decontaminate
from data_pipeline.dedup.exact import ExactDedup
from data_pipeline.dedup.lines import LineDedup
from data_pipeline.dedup.minhash import MinHashDedup
from data_pipeline.dedup.semantic import SemanticDedup
from data_pipeline.dedup.substring import SubstringDedup
from data_pipeline.dedup.survivors import KeepOrder, Prefer
from data_pipeline.dedup.url import UrlDedup
from data_pipeline.extract.extract import Extract
from data_pipeline.filters.c4 import C4
from data_pipeline.filters.fineweb import FineWeb
from data_pipeline.filters.gopher_quality import GopherQuality
from data_pipeline.filters.gopher_repetition import GopherRepetition
from data_pipeline.filters.language import Language
from data_pipeline.filters.llama3 import Llama3
from data_pipeline.filters.nsfw import NSFW
from data_pipeline.filters.perplexity import Perplexity
from data_pipeline.filters.pii import PII
from data_pipeline.filters.quality import Quality
from data_pipeline.filters.refinedweb import RefinedWeb
from data_pipeline.filters.token_kl import TokenKL
from data_pipeline.filters.url_list import UrlList
from data_pipeline.filters.word_lists import check_lists
from data_pipeline.stages import STAGES
from data_pipeline.text.ngrams import DUPLICATED_SIZES, LARGEST, TOP_SIZES
from llama_foundation.errors import ConfigError

MEBIBYTE = 1024 * 1024


@dataclass
class DatasetConfig:
    """A data set of the Hugging Face hub, streamed by name."""

    name: str | None = None  # such as org/set
    revision: str | None = None  # the commit, 40 hexadecimal digits: a branch or a tag may move
    split: str = "train"
    config: str | None = None  # of a set that has several

    def check(self) -> None:
        if self.name is None:
            return
        if self.revision is None or not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ConfigError(
                f"input.dataset.revision={self.revision}: give the commit of {self.name}, 40 hexadecimal digits (the "
                "hub shows it under Files and versions, History); a branch or a tag may move and change your shards"
            )


@dataclass
class InputConfig:
    """Which files, and which of their columns are what. A column that a record lacks is null, except the text."""

    paths: list[str] = field(
        default_factory=list
    )  # files, folders saved by datasets, globs (** too), URLs of object stores
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    published_paths: list[str] = field(default_factory=list)  # read too; already in published shards
    list: str | None = None  # a file with one path or glob per line (below the lists: it hides their type)
    source: str | None = None  # of records without a source column; null: the file's name without its suffixes
    text_column: str = "text"
    source_column: str = "source"
    url_column: str = "url"
    date_column: str = "date"
    language_column: str = "language"
    content_type_column: str = "content_type"
    license_column: str = "license"
    opt_out_column: str = "opt_out"
    max_line_bytes: int = 64 * MEBIBYTE  # a longer line is skipped and counted
    max_record_bytes: int = 64 * MEBIBYTE  # the same for a WARC record, what it unpacks to, and a value of a table
    max_zstd_window_bytes: int = 2**31  # a frame that needs more memory than this is not read

    def check(self) -> None:
        if not (self.paths or self.list or self.published_paths or self.dataset.name):
            raise ConfigError(
                "input.paths is empty; give files or globs: input.paths=[corpus/*.jsonl.zst] (or input.list=FILE, "
                "input.dataset.name=NAME)"
            )
        self.dataset.check()
        _at_least("input.max_line_bytes", self.max_line_bytes, 1)
        _at_least("input.max_record_bytes", self.max_record_bytes, 1)
        _between("input.max_zstd_window_bytes", self.max_zstd_window_bytes, 1024, 2**31)

    def columns(self) -> dict[str, str]:
        """Return role -> column name in the files."""
        roles = ("text", "source", "url", "date", "language", "content_type", "license", "opt_out")
        return {role: getattr(self, f"{role}_column") for role in roles}


@dataclass
class PipelineConfig:
    """The stages, in their order, and the settings of each."""

    name: str = MISSING
    departures: list[str] = field(default_factory=list)  # from the preset's paper, and why; printed at the start
    stages: list[str] = MISSING
    extract: Extract = field(default_factory=Extract)
    url_list: UrlList = field(default_factory=UrlList)
    language: Language = field(default_factory=Language)
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)
    nsfw: NSFW = field(default_factory=NSFW)
    quality: Quality = field(default_factory=Quality)
    perplexity: Perplexity = field(default_factory=Perplexity)
    pii: PII = field(default_factory=PII)
    refinedweb: RefinedWeb = field(default_factory=RefinedWeb)
    llama3: Llama3 = field(default_factory=Llama3)
    token_kl: TokenKL = field(default_factory=TokenKL)
    url_dedup: UrlDedup = field(default_factory=UrlDedup)
    exact_dedup: ExactDedup = field(default_factory=ExactDedup)
    line_dedup: LineDedup = field(default_factory=LineDedup)
    minhash_dedup: MinHashDedup = field(default_factory=MinHashDedup)
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
            if hasattr(order, "check"):
                try:
                    order.check()
                except ConfigError as error:
                    raise ConfigError(f"pipeline.{str(error).removeprefix('pipeline.')}") from error
            if isinstance(order, KeepOrder) and (order.prefer is Prefer.best_score) != (order.score is not None):
                raise ConfigError(
                    f"pipeline.{name}.prefer={order.prefer.value} and pipeline.{name}.score={order.score}: "
                    "prefer=best_score needs a score, <stage>.<score>, and nothing else does"
                )
        check_lists("pipeline.c4.flagged_word_lists", self.c4.flagged_word_lists)
        check_lists("pipeline.llama3.dirty_word_lists", self.llama3.dirty_word_lists)
        _between("pipeline.llama3.line_ngram", self.llama3.line_ngram, DUPLICATED_SIZES[0], LARGEST)
        _between("pipeline.token_kl.table_bits", self.token_kl.table_bits, 8, 26)
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
    temperature: float = 1.0  # T: a language's part of the sample is as its bytes ** (1 / T); 1: as it is in the text


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
            if not 0.98 <= self.train.character_coverage <= 1:  # what sentencepiece takes
                raise ConfigError(
                    f"tokenizer.train.character_coverage={self.train.character_coverage} must be between 0.98 and 1"
                )
            _at_least("tokenizer.train.sample_bytes", self.train.sample_bytes, 1000)
            if not 1 <= self.train.temperature < inf:
                raise ConfigError(
                    f"tokenizer.train.temperature={self.train.temperature} must be at least 1: 1 samples languages as "
                    "they are, larger ones bring rare languages nearer to the frequent ones"
                )
            weights = self.train.source_weights
            if weights and not (all(0 <= weight < inf for weight in weights.values()) and sum(weights.values()) > 0):
                raise ConfigError(
                    f"tokenizer.train.source_weights={dict(weights)}: every weight must be a number of at least 0, "
                    "and one of them above 0"
                )


@dataclass
class ValidationConfig:
    """Documents that are held out, chosen by keyed hash of their cluster, so that near-copies stay together."""

    fraction: float = 0.01  # of documents, at least one; 0: none

    def check(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"validation.fraction={self.fraction} must be at least 0 and less than 1")


@dataclass
class WhatIfSampling:
    """Documents whose scores are kept for `llama-data what-if`, chosen by keyed hash of their record id."""

    sample_fraction: float = 0.01  # of documents; 0: none

    def check(self) -> None:
        if not 0 <= self.sample_fraction <= 1:
            raise ConfigError(f"what_if.sample_fraction={self.sample_fraction} must be between 0 and 1")


class EngineName(Enum):
    local = "local"  # processes of this machine
    ray = "ray"  # tasks on a Ray cluster
    array = "array"  # workers that are started by hand or by SLURM, and share the output directory


@dataclass
class EngineConfig:
    """Where the work is done; no byte of the shards depends on it."""

    name: EngineName = EngineName.local
    address: str = ""  # ray: HOST:PORT, or auto for the cluster this machine belongs to; empty: one is started here
    cpus_per_task: float = 1.0  # ray: what a task reserves
    tasks_per_process: int = 100  # ray: a worker process is replaced after so many tasks
    lease_seconds: float = 120.0  # array: a worker that was not heard of for so long is taken for dead

    def check(self) -> None:
        if not 0 < self.cpus_per_task <= 1024:
            raise ConfigError(f"engine.cpus_per_task={self.cpus_per_task} must be above 0 and at most 1024")
        _at_least("engine.tasks_per_process", self.tasks_per_process, 1)
        if not 1 <= self.lease_seconds < inf:
            raise ConfigError(f"engine.lease_seconds={self.lease_seconds} must be at least 1")
        if self.address and self.name is not EngineName.ray:
            raise ConfigError(f"engine.address={self.address} is of use to engine=ray only, not to {self.name.value}")


@dataclass
class DataPipelineConfig:
    """Everything `llama-data` can be told."""

    input: InputConfig = field(default_factory=InputConfig)
    output: str = ""  # directory
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    what_if: WhatIfSampling = field(default_factory=WhatIfSampling)
    engine: EngineConfig = field(default_factory=EngineConfig)
    workers: int = 0  # processes of this command, on ray tasks at a time; 0: one per core, on ray of the whole cluster
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
        for section in (self.input, self.pipeline, self.tokenizer, self.validation, self.what_if, self.engine):
            section.check()


RUNTIME_SETTINGS = ("output", "engine", "workers", "partition_bytes", "overwrite", "what_if", "pipeline.departures")
"""Settings, and sections of them, that do not change a byte of the shards."""


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
