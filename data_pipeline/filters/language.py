"""Language: lid.176 of fastText (Joulin et al. 2016, arXiv:1612.03651), its compressed form, shipped with the package.

Which languages to keep, and how sure the model must be of each. `fasttext_model.py` reads it: no package named fasttext
is needed, of which several own one module. See `data/NOTICE` for the model's licence.
"""

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.document import Documents
from data_pipeline.filters.fasttext_model import Model, read_model
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.word_hashes import text_buffers
from llama_foundation.errors import ConfigError

NAME = "language"
VERSION = 1

MODEL = Path(__file__).parent / "data" / "lid.176.ftz"


class LanguageMode(Enum):
    missing = "missing"  # only documents without a language are looked at; what a source says is believed
    always = "always"  # every document gets the model's language
    compare = "compare"  # as `missing`, but the others are looked at too and disagreements counted


@dataclass
class Language:
    """Thresholds are probabilities of the model; CCNet kept from 0.5, RefinedWeb and FineWeb from 0.65."""

    mode: LanguageMode = LanguageMode.missing
    keep: list[str] = field(default_factory=list)  # codes of the model such as en or zh; empty: all
    thresholds: dict[str, float] = field(default_factory=dict)  # language -> least probability
    default_threshold: float = 0.5  # of the languages that `thresholds` does not name
    drop_disagreements: bool = False  # with mode=compare: drop what its source says is another language
    max_bytes: int = 0  # of a text are looked at, from its start; 0: all

    def check(self) -> None:
        known = set(labels())
        for setting, codes in (("keep", self.keep), ("thresholds", self.thresholds)):
            unknown = sorted(set(codes) - known)
            if unknown:
                raise ConfigError(
                    f"language.{setting} names {', '.join(unknown)}, which lid.176 does not know; "
                    f"its languages: {', '.join(sorted(known))}"
                )
        named = {"default_threshold": self.default_threshold}
        for name, value in (named | {f"thresholds.{code}": value for code, value in self.thresholds.items()}).items():
            if not 0 <= value <= 1:
                raise ConfigError(f"language.{name}={value} must be between 0 and 1")
        if self.max_bytes < 0:
            raise ConfigError(f"language.max_bytes={self.max_bytes} must be at least 0")
        if self.drop_disagreements and self.mode != LanguageMode.compare:
            raise ConfigError(f"language.drop_disagreements=true needs language.mode=compare, not {self.mode.value}")


def files(settings: Language) -> list[Path]:
    """Return the files whose content decides what is kept."""
    return [MODEL]


def rules(settings: Language) -> list[Rule]:
    """Return one cut per threshold; a document has the score of its own language's cut and abstains at the others."""
    own = [Rule(f"uncertain_{code}", f"score_{code}", minimum=least) for code, least in settings.thresholds.items()]
    return [*own, Rule("uncertain", "score_other" if own else "score", minimum=settings.default_threshold)]


def measure(documents: Documents, settings: Language) -> Measurement:
    """Identify the languages of a batch.

    A text without a letter has no language. A document whose language its source gave has no score with `missing`.
    """
    given = documents.batch["language"]
    texts = documents.batch["text"]
    known = given.is_valid().to_numpy(zero_copy_only=False)
    looked_at = np.flatnonzero(_has_letter(*text_buffers(texts)) & (~known | (settings.mode != LanguageMode.missing)))
    found = np.full(len(documents), None, object)
    score = np.full(len(documents), np.nan)
    found[looked_at], score[looked_at] = identify(texts.take(pa.array(looked_at)), settings.max_bytes)

    measured = pa.array(found, pa.string())
    languages = measured if settings.mode == LanguageMode.always else pc.coalesce(given, measured)
    primary = _primary(languages)
    scores = {"score": score}
    if settings.thresholds:
        mine = _primary(measured).to_numpy(zero_copy_only=False)
        own = np.isin(mine.astype(str), list(settings.thresholds))
        scores["score_other"] = np.where(own, np.nan, score)
        scores |= {f"score_{code}": np.where(mine == code, score, np.nan) for code in settings.thresholds}
    drops, counts = {}, {}
    if settings.keep:
        wanted = pc.is_in(primary, pa.array(settings.keep)).to_numpy(zero_copy_only=False)
        drops["unwanted"] = ~wanted
    if settings.mode == LanguageMode.compare:
        both = known & ~np.isnan(score)
        same = pc.fill_null(pc.equal(_primary(given), measured), False).to_numpy(zero_copy_only=False)
        counts = {"agrees": int((both & same).sum()), "disagrees": int((both & ~same).sum())}
        if settings.drop_disagreements:
            drops["disagrees"] = both & ~same
    return Measurement(scores=scores, columns={"language": languages}, drops=drops, counts=counts)


def in_languages(column: pa.Array, languages: list[str]) -> np.ndarray:
    """Return bool [documents]: whether each is known to be in one of `languages`; `en` also stands for `en-US`."""
    return pc.is_in(_primary(column), pa.array(languages, pa.string())).to_numpy(zero_copy_only=False)


def identify(texts: pa.Array, max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (object [texts] language codes, float64 [texts] probabilities) of large_string texts."""
    found, probabilities = _model().predict(texts, max_bytes)
    # the guard inside of the model's logarithms lets a probability exceed 1 by some 1e-5
    return np.array(labels(), object)[found], np.minimum(probabilities.astype(np.float64), 1.0)


def labels() -> tuple[str, ...]:
    """Return the codes of the model's languages."""
    return _model().labels


@lru_cache(maxsize=1)
def _model() -> Model:
    return read_model(MODEL)


def _primary(languages: pa.Array) -> pa.Array:
    return pc.utf8_lower(pc.replace_substring_regex(languages, r"[-_].*", ""))


@numba.njit(cache=True, nogil=True)
def _has_letter(offsets, data):
    """Return bool [texts]: an ASCII letter or any byte of another character is there."""
    has = np.zeros(offsets.size - 1, np.bool_)
    for document in range(offsets.size - 1):
        for position in range(offsets[document], offsets[document + 1]):
            byte = data[position]
            if byte >= 0x80 or 0x41 <= byte & 0xDF <= 0x5A:
                has[document] = True
                break
    return has
