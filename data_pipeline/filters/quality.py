"""Quality: a classifier that the user trained with `llama-quality` (`linear.py`).

Llama 1 used one to tell pages like those that Wikipedia cites from others (Touvron et al. 2023, arXiv:2302.13971,
section 2.1): the cited pages are the positive texts, ordinary pages the negative ones.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.document import Documents
from data_pipeline.filters.language import in_languages
from data_pipeline.filters.linear import load_model
from data_pipeline.filters.measure import Measurement, Rule
from llama_foundation.errors import ConfigError, DataError

NAME = "quality"
VERSION = 1


@dataclass
class Quality:
    """Which model, and where it cuts: give `threshold` or `keep_fraction`, or neither to score only."""

    model: str = ""  # a file of llama-quality
    threshold: float | None = None  # a document of at least this score is kept
    keep_fraction: float | None = None  # the share of the model's held-out negative texts that would be kept
    languages: list[str] = field(default_factory=list)  # of the model; it abstains for others; empty: judges all

    def check(self) -> None:
        if not self.model:
            raise ConfigError("quality.model is not set; give a file that llama-quality wrote")
        if self.threshold is not None and self.keep_fraction is not None:
            raise ConfigError(
                f"quality.threshold={self.threshold} and quality.keep_fraction={self.keep_fraction}: give one of both"
            )
        for name, value in (("threshold", self.threshold), ("keep_fraction", self.keep_fraction)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"quality.{name}={value} must be between 0 and 1")


def files(settings: Quality) -> list[Path]:
    """Return the files whose content decides what is kept."""
    return [Path(settings.model)]


def rules(settings: Quality) -> list[Rule]:
    """Return the cut.

    Raises:
        DataError: the model is missing or damaged, or was trained without enough held-out text for `keep_fraction`.
    """
    threshold = settings.threshold
    if settings.keep_fraction is not None:
        threshold = load_model(settings.model).threshold_for(settings.keep_fraction)
        if np.isnan(threshold):
            raise DataError(
                f"{settings.model}: has no scores of held-out negative texts, which quality.keep_fraction needs; "
                "set quality.threshold, or train it with held_out above 0"
            )
    return [Rule("low_score", "score", minimum=threshold)] if threshold is not None else []


def measure(documents: Documents, settings: Quality) -> Measurement:
    """Score a batch; NaN for documents without a word and those in other languages."""
    model = load_model(settings.model)
    scores = model.scores(documents.batch["text"])
    if settings.languages:
        scores[~in_languages(documents.batch["language"], settings.languages)] = np.nan
    return Measurement(scores={"score": scores})
