"""NSFW: the URL, the words and a trained classifier, and how they are combined.

Llama 3 left out domains known for adult content and counted dirty words for those that no list has (The Llama 3 Herd
of Models, arXiv:2407.21783, section 3.1.1); no numbers are published, so the default density is ours (docs/judging.md).
"""

from dataclasses import dataclass, field
from enum import Enum
from math import inf
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.document import Documents
from data_pipeline.filters import url_list
from data_pipeline.filters.language import in_languages
from data_pipeline.filters.lexicon import SHIPPED, load_lexicons, matches
from data_pipeline.filters.linear import load_model
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.url_list import UrlList
from llama_foundation.errors import ConfigError

NAME = "nsfw"
VERSION = 1


class Combination(Enum):
    any = "any"  # one part is enough to drop a document
    weighted = "weighted"  # the weighted mean of the parts that have an opinion


@dataclass
class NSFW:
    """Which parts speak: URL lists where there are any, words unless off, the classifier where there is a model."""

    combine: Combination = Combination.any
    url: UrlList = field(default_factory=UrlList)
    lexicon: str | None = None  # file of language<TAB>entry[<TAB>weight] lines; null: the shipped LDNOOBW
    use_lexicon: bool = True
    max_density: float = 0.02  # weight of the entries found, per word
    least_words: int = 50  # a shorter text is taken for one of so many words: one word is no density
    classifier: str | None = None  # a model of llama-quality whose positive texts are NSFW
    classifier_languages: list[str] = field(default_factory=list)  # that it judges; empty: all
    max_probability: float = 0.5
    url_weight: float = 1.0  # weights and limit of combine=weighted
    lexicon_weight: float = 1.0
    classifier_weight: float = 1.0
    max_weighted: float = 0.5

    def check(self) -> None:
        if not (self.use_lexicon or self.classifier or _has_lists(self)):
            raise ConfigError("nsfw has no part: give nsfw.url.folders, nsfw.classifier or nsfw.use_lexicon=true")
        if not self.max_density > 0:
            raise ConfigError(f"nsfw.max_density={self.max_density} must be above 0")
        if self.least_words < 1:
            raise ConfigError(f"nsfw.least_words={self.least_words} must be at least 1")
        weights = {name: getattr(self, f"{name}_weight") for name in ("url", "lexicon", "classifier")}
        for name, value in weights.items():
            if not 0 <= value < inf:
                raise ConfigError(f"nsfw.{name}_weight={value} must be a number of at least 0")
        for name in ("max_probability", "max_weighted"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"nsfw.{name}={getattr(self, name)} must be between 0 and 1")
        if _has_lists(self):
            self.url.check()


def files(settings: NSFW) -> list[Path]:
    """Return the files whose content decides what is kept."""
    paths = url_list.files(settings.url) if _has_lists(settings) else []
    if settings.use_lexicon:
        paths.append(Path(settings.lexicon) if settings.lexicon else SHIPPED)
    return paths + ([Path(settings.classifier)] if settings.classifier else [])


def rules(settings: NSFW) -> list[Rule]:
    """Return the cuts, in the order of what they cost."""
    if settings.combine == Combination.weighted:
        return [Rule("weighted", "weighted", maximum=settings.max_weighted)]
    cuts = [Rule("words", "density", maximum=settings.max_density)] if settings.use_lexicon else []
    if settings.classifier:
        cuts.append(Rule("classifier", "probability", maximum=settings.max_probability))
    return cuts


def measure(documents: Documents, settings: NSFW) -> Measurement:
    """Score a batch.

    The words abstain for documents without a language or without a list for it; the classifier for texts without a
    word and other languages; the URL for documents without one. `weighted` is the mean of url (0 or 1), density by
    max_density (1 at most) and probability, of those that do not abstain.
    """
    measured = Measurement(scores={})
    parts: list[tuple[float, np.ndarray]] = []
    if _has_lists(settings):
        domain, url, without = url_list.listed(documents.batch["url"], settings.url)
        measured.counts["without_url"] = without
        if settings.combine == Combination.any:
            measured.drops = {"domain": domain, "url": url}
        known = documents.batch["url"].is_valid().to_numpy(zero_copy_only=False)
        parts.append((settings.url_weight, np.where(known, domain | url, np.nan)))
    if settings.use_lexicon:
        measured.scores["density"] = density = _density(documents, settings)
        parts.append((settings.lexicon_weight, np.minimum(density / settings.max_density, 1)))
    if settings.classifier:
        probability = load_model(settings.classifier).scores(documents.batch["text"])
        if settings.classifier_languages:
            probability[~in_languages(documents.batch["language"], settings.classifier_languages)] = np.nan
        measured.scores["probability"] = probability
        parts.append((settings.classifier_weight, probability))
    if settings.combine == Combination.weighted:
        measured.scores["weighted"] = _weighted(parts)
    return measured


def _has_lists(settings: NSFW) -> bool:
    return bool(settings.url.folders or settings.url.domains or settings.url.urls)


def _density(documents: Documents, settings: NSFW) -> np.ndarray:
    lexicons = load_lexicons(Path(settings.lexicon) if settings.lexicon else SHIPPED)
    languages = pc.utf8_lower(pc.replace_substring_regex(documents.batch["language"], r"[-_].*", ""))
    density = np.full(len(documents), np.nan)
    for language in pc.unique(languages).to_pylist():
        if language in lexicons:
            rows = np.flatnonzero(pc.equal(languages, language).fill_null(False).to_numpy(zero_copy_only=False))
            found, words = matches(documents.batch["text"].take(pa.array(rows)), lexicons[language])
            density[rows] = found / np.maximum(words, settings.least_words)
    return density


def _weighted(parts: list[tuple[float, np.ndarray]]) -> np.ndarray:
    weights = np.array([weight for weight, _ in parts])[:, None]
    values = np.stack([value for _, value in parts])
    speaks = ~np.isnan(values)
    total = (weights * speaks).sum(0)
    mean = (weights * np.where(speaks, values, 0)).sum(0) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, np.nan)
