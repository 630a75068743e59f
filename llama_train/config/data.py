"""Which tokens a step sees, and which tokens and tasks a run is validated on."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least


@dataclass
class Segment:
    """A change of the data on the way: from step `from_step` on, what is not null replaces the value before."""

    from_step: int = MISSING  # optimizer step, counted from 0
    batch_size: int | None = None  # sequences per optimizer step, over all ranks
    sequence_length: int | None = None  # tokens
    sources: dict[str, float] | None = None  # weights


class Packing(Enum):
    concatenate = "concatenate"  # documents one after the other, cut at every sequence_length tokens
    best_fit = "best_fit"  # packs made ahead by llama-pack: only documents longer than sequence_length are cut


@dataclass
class DataConfig:
    """Which tokens a step sees: a pure function of these settings, the seed, the amendments and the step."""

    shards: str = MISSING  # the output directory of llama-data
    sources: dict[str, float] = field(default_factory=dict)  # weights per source; empty: in proportion to tokens
    sequence_length: int = MISSING  # tokens
    batch_size: int = MISSING  # sequences per optimizer step, over all ranks
    segments: list[Segment] = field(default_factory=list)  # sorted by from_step
    document_masks: bool = True  # attention stops at document boundaries and positions restart
    packing: Packing = Packing.concatenate  # how documents become training sequences

    def check(self) -> None:
        at_least("data.sequence_length", self.sequence_length, 1)
        at_least("data.batch_size", self.batch_size, 1)
        _check_weights("data.sources", self.sources)
        if self.packing is Packing.best_fit and not self.document_masks:
            raise ConfigError(
                "data.packing=best_fit puts documents side by side that have nothing to do with each other, and needs "
                "data.document_masks=true; use that, or data.packing=concatenate"
            )
        previous = 0
        for number, segment in enumerate(self.segments):
            where = f"data.segments[{number}]"
            if segment.from_step <= previous:
                raise ConfigError(f"{where}.from_step={segment.from_step} must be greater than {previous}")
            previous = segment.from_step
            for name in ("batch_size", "sequence_length"):
                if getattr(segment, name) is not None:
                    at_least(f"{where}.{name}", getattr(segment, name), 1)
            if segment.sources is not None:
                _check_weights(f"{where}.sources", segment.sources)

    def longest_sequence(self) -> int:
        """The longest sequence of any segment, in tokens."""
        return max([self.sequence_length, *(s.sequence_length for s in self.segments if s.sequence_length)])


@dataclass
class ValidationConfig:
    """Loss on the held-out shards: always the same windows, in order."""

    every: int = 0  # optimizer steps between validations; 0: never (one at the end of the run if batches > 0)
    batches: int = 0  # batches of data.batch_size sequences; 0: no validation at all
    task_files: str | None = None  # a directory of JSONL tasks (docs/evaluation.md)
    tasks: list[str] = field(default_factory=list)  # of task_files; none: all of them
    tasks_every: int = 0  # optimizer steps between runs of the tasks; 0: never
    tasks_limit: int = 100  # examples of each task; 0: all
    tasks_shots: int = 0  # other examples of the file shown, with their answers, before each
    delimiters: dict[str, str] = field(default_factory=dict)  # task → text between question and answer; " " elsewhere

    def check(self) -> None:
        for name in ("every", "batches", "tasks_every", "tasks_limit", "tasks_shots"):
            at_least(f"validation.{name}", getattr(self, name), 0)
        if self.tasks_every > 0 and self.task_files is None:
            raise ConfigError(f"validation.tasks_every={self.tasks_every} needs validation.task_files=DIR")


def _check_weights(name: str, weights: dict[str, float]) -> None:
    for source, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"{name}.{source}={weight} must be a weight of at least 0")
    if weights and not sum(weights.values()) > 0:
        raise ConfigError(f"{name}: at least one weight must be above 0")
