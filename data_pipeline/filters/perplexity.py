"""Perplexity buckets by the user's n-gram models (CCNet: Wenzek et al. 2020, arXiv:1911.00359, section 3.3).

A model trained on text that one wants, such as Wikipedia, gives each document a perplexity; two cuts per language part
the documents into head, middle and tail. CCNet cuts at the 30th and 60th percentile of each language.
The models are kenlm's, which has no wheel: pip builds it from source and needs a C++ compiler.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from llama_foundation.errors import ConfigError, DataError, UserError

NAME = "perplexity"
VERSION = 1

LARGEST = 1e30
"""Perplexities are cut off here, so that a score is always finite."""

_DIGIT = re.compile(r"\d")


class Bucket(Enum):
    head = "head"
    middle = "middle"
    tail = "tail"


@dataclass
class LanguageModel:
    """The model of one language, and where it cuts."""

    model: str = ""  # a kenlm file, .bin or .arpa
    tokenizer: str | None = None  # the sentencepiece model that the texts were encoded with; null: words by white space
    head: float = 0.0  # perplexity up to which a document is in the head
    middle: float = 0.0  # and up to which it is in the middle


@dataclass
class Perplexity:
    """Documents of languages without a model abstain, and so do those without text."""

    models: dict[str, LanguageModel] = field(default_factory=dict)  # language -> its model
    keep_through: Bucket = Bucket.tail  # the last bucket that is kept
    normalize: bool = True  # lower case, no accents, 0 for every digit, as CCNet's models were trained

    def check(self) -> None:
        if not self.models:
            raise ConfigError("perplexity.models names no model; give perplexity.models.en.model=FILE and its cuts")
        for language, each in self.models.items():
            if not each.model:
                raise ConfigError(f"perplexity.models.{language}.model is not set; give a kenlm file")
            if not 0 < each.head <= each.middle:
                raise ConfigError(
                    f"perplexity.models.{language}: head={each.head} and middle={each.middle} must be above 0, and "
                    "head at most middle"
                )


def files(settings: Perplexity) -> list[Path]:
    """Return the files whose content decides what is kept."""
    names = [name for each in settings.models.values() for name in (each.model, each.tokenizer) if name]
    return [Path(name) for name in names]


def rules(settings: Perplexity) -> list[Rule]:
    """Return one cut per language; none where all buckets are kept."""
    if settings.keep_through == Bucket.tail:
        return []
    name = settings.keep_through.value
    return [Rule(f"high_{code}", code, maximum=getattr(each, name)) for code, each in settings.models.items()]


def measure(documents: Documents, settings: Perplexity) -> Measurement:
    """Score a batch, per language, and put each document into a bucket (column `perplexity_bucket`)."""
    scores = {code: np.full(len(documents), np.nan) for code in settings.models}
    buckets: list[str | None] = [None] * len(documents)
    columns = zip(documents.batch["language"].to_pylist(), documents.batch["text"], strict=True)
    for row, (language, text) in enumerate(columns):
        code = re.split("[-_]", language)[0].lower() if language else None
        if code not in settings.models:
            continue
        each = settings.models[code]
        perplexity = _perplexity(text.as_py(), each, settings.normalize)
        if perplexity is None:
            continue
        scores[code][row] = perplexity
        buckets[row] = "head" if perplexity <= each.head else "middle" if perplexity <= each.middle else "tail"
    return Measurement(scores=scores, columns={"perplexity_bucket": pa.array(buckets, pa.string())})


def normalized(line: str) -> str:
    """Return a line in lower case, without accents and with 0 for every digit."""
    plain = "".join(c for c in unicodedata.normalize("NFD", line.lower()) if unicodedata.category(c) != "Mn")
    return _DIGIT.sub("0", plain)


def _perplexity(text: str, settings: LanguageModel, normalize: bool) -> float | None:
    """Return 10 ** (− log10 probability per token, the ends of the lines counted), lines being sentences."""
    model = _load(settings.model)
    tokenizer = _load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    logarithm, tokens = 0.0, 0
    for line in text.split("\n"):
        line = normalized(line.strip()) if normalize else line.strip()
        pieces = tokenizer.encode(line, out_type=str) if tokenizer else line.split()
        if pieces:
            logarithm += model.score(" ".join(pieces))
            tokens += len(pieces) + 1
    return min(10 ** min(-logarithm / tokens, 300), LARGEST) if tokens else None


@lru_cache(maxsize=32)
def _load(path: str) -> Any:
    try:
        import kenlm
    except ImportError as error:
        raise UserError(
            "perplexity needs kenlm, which is built from source: with a C++ compiler and CMake installed run "
            f"pip install 'llama-train[kenlm]' ({error})"
        ) from error
    if not Path(path).is_file():
        raise DataError(f"perplexity.models: {path} does not exist")
    try:
        return kenlm.Model(path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: kenlm cannot read it: {error}") from error


@lru_cache(maxsize=32)
def _load_tokenizer(path: str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: is not a sentencepiece model: {error}") from error
