"""What contamination is, by whose definition, and what happens to a document that has it."""

from dataclasses import dataclass, field
from enum import Enum

from llama_foundation.errors import ConfigError


class Definition(Enum):
    """A published definition, which sets every setting that is null."""

    gpt3 = "gpt3"  # Brown et al. 2020, appendix C: 13-grams; 200 characters around them are cut
    llama2 = (
        "llama2"  # Touvron et al. 2023, Llama 2, A.6: 10-grams extended over up to 4 other words, 80 % of an example
    )
    llama3 = "llama3"  # Llama Team 2024, section 5.1.4: 8-grams, a share of an example


class Action(Enum):
    """What happens to a document that contaminates an example."""

    cut = "cut"  # the match goes, and `window_characters` on both sides
    drop = "drop"
    report = "report"  # nothing


@dataclass
class Decontaminate:
    """Which benchmarks, by which definition."""

    benchmarks: dict[str, str] = field(default_factory=dict)  # name -> file: .jsonl, .ndjson, or plain text by lines
    fields: list[str] = field(default_factory=lambda: ["text"])  # of a JSON line, joined by white space in this order
    definition: Definition = Definition.gpt3
    action: Action | None = None  # null: cut for gpt3, drop for llama2 and llama3 (their papers only analyse)
    ngram: int | None = None  # words; null: 13, 10, 8
    mismatches: int | None = None  # words that may differ inside a longer match; null: 0, 4, 0
    min_share: float | None = None  # of an example's words matched by one document; null: any (0), 0.8, 0.5
    max_documents: int | None = None  # an n-gram in more of them is a common phrase and ignored; null: 10, all, all
    window_characters: int = 200  # Brown et al.
    min_piece_characters: int = 200  # Brown et al.: what is left between two cuts and is shorter goes too
    max_pieces: int = 10  # Brown et al.: a document that is cut into more is dropped

    def check(self) -> None:
        """Refuse what cannot work; the benchmark files are read when the stage starts.

        Raises:
            ConfigError: names the setting.
        """
        if not self.benchmarks:
            raise ConfigError(
                "pipeline.decontaminate.benchmarks is empty; name files: "
                "'pipeline.decontaminate.benchmarks={gsm8k: gsm8k_test.jsonl}'"
            )
        for name, low in (("ngram", 2), ("mismatches", 0), ("max_documents", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"pipeline.decontaminate.{name}={value} must be at least {low}, or null")
        if self.min_share is not None and not 0 <= self.min_share <= 1:
            raise ConfigError(f"pipeline.decontaminate.min_share={self.min_share} must be between 0 and 1, or null")
        for name in ("window_characters", "min_piece_characters", "max_pieces"):
            if getattr(self, name) < 0:
                raise ConfigError(f"pipeline.decontaminate.{name}={getattr(self, name)} must be at least 0")
        if not self.fields:
            raise ConfigError(
                "pipeline.decontaminate.fields is empty; name the columns of an example: fields=[question]"
            )


@dataclass(frozen=True)
class Rules:
    """The settings with every null filled in.

    The share of Llama 3 is chosen per benchmark in the paper, by what shows the largest gain of performance; 0.5 is
    ours. Llama 2 counts model tokens; words are counted here.
    """

    ngram: int
    mismatches: int
    min_share: float
    max_documents: int | None
    action: Action

    @classmethod
    def of(cls, settings: Decontaminate) -> "Rules":
        ngram, mismatches, share, documents, action = {
            Definition.gpt3: (13, 0, 0.0, 10, Action.cut),
            Definition.llama2: (10, 4, 0.8, None, Action.drop),
            Definition.llama3: (8, 0, 0.5, None, Action.drop),
        }[settings.definition]
        return cls(
            ngram if settings.ngram is None else settings.ngram,
            mismatches if settings.mismatches is None else settings.mismatches,
            share if settings.min_share is None else settings.min_share,
            documents if settings.max_documents is None else settings.max_documents,
            action if settings.action is None else settings.action,
        )
