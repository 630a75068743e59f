"""Which documents are held out for validation, and which ones a tokenizer is trained on.

Both choices are made by keyed hashes: they depend on the documents, not on how they are cut up. Held out are whole
clusters of near-copies, so that no document is trained on whose copy is validated on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.document import keyed_hashes, text_bytes
from data_pipeline.report.statistics import UNKNOWN_LANGUAGE
from llama_foundation.errors import ConfigError, DataError

TRAIN = "train"
VALIDATION = "validation"


SPLITS = (TRAIN, VALIDATION)

Sizes = dict[tuple[str, str, str], int]
"""(split, source, language) -> bytes of text"""


def index(batch: pa.RecordBatch, seed: int) -> pa.Table:
    """Return for each document its two hashes (uint64), its size in bytes, source and language: what choices need."""
    return pa.table(
        {
            "validation_hash": validation_hashes(batch, seed),
            "sample_hash": keyed_hashes(batch["record_id"].to_pylist(), "tokenizer sample", seed),
            "bytes": text_bytes(batch),
            "source": batch["source"].dictionary_encode(),
            "language": batch["language"].fill_null(UNKNOWN_LANGUAGE).dictionary_encode(),
        }
    )


def validation_hashes(batch: pa.RecordBatch, seed: int) -> np.ndarray:
    """Return uint64 [documents]: equal for the documents of a cluster."""
    return keyed_hashes(pc.coalesce(batch["cluster"], batch["record_id"]).to_pylist(), VALIDATION, seed)


def validation_limit(tables: Iterable[pa.Table], fraction: float) -> int:
    """Return the limit: documents with a validation hash below it are held out.

    Where the fraction catches none, the document (or cluster) with the smallest hash is.

    Raises:
        DataError: nothing would be left to train on.
    """
    if fraction == 0:
        return 0
    limit = int(fraction * 2**64)
    smallest, largest = 2**64, -1
    for table in tables:
        hashes = table["validation_hash"].to_numpy()
        if not len(hashes):
            continue
        smallest, largest = min(smallest, int(hashes.min())), max(largest, int(hashes.max()))
    if largest < 0:
        return 0
    limit = max(limit, smallest + 1)
    if largest < limit:
        raise DataError(
            f"validation.fraction={fraction} holds out every document that was kept; give more documents, or "
            "validation.fraction=0 for none"
        )
    return limit


def is_validation(hashes: np.ndarray, limit: int) -> np.ndarray:
    """Return bool [documents] for uint64 hashes and the limit of `validation_limit`."""
    return hashes < np.uint64(limit)


def text_sizes(tables: Iterable[pa.Table], limit: int) -> Sizes:
    """Return how much text there is of each split, source and language."""
    sizes: Sizes = {}
    for table in tables:
        held_out = is_validation(table["validation_hash"].to_numpy(), limit)
        table = table.select(["source", "language", "bytes"]).append_column("split", pa.array(held_out))
        for row in table.group_by(["split", "source", "language"]).aggregate([("bytes", "sum")]).to_pylist():
            place = (SPLITS[row["split"]], row["source"], row["language"])
            sizes[place] = sizes.get(place, 0) + row["bytes_sum"]
    return dict(sorted(sizes.items()))


@dataclass(frozen=True)
class Share:
    """What a tokenizer's sample takes of a source: training documents with a sample hash up to `largest_hash`.

    One document is taken even if it is larger than `most_bytes`; its text is then cut to that.
    """

    source: str
    language: str | None  # None: of all languages
    largest_hash: int
    most_bytes: int


def sample_shares(
    tables: Iterable[pa.Table],
    limit: int,
    sizes: Sizes,
    sample_bytes: int,
    weights: Mapping[str, float],
    temperature: float,
) -> list[Share]:
    """Return what a sample of `sample_bytes` of text takes of each source, or of each source and language.

    With `weights`, each source named there gets that part of `sample_bytes` (all its text where it has less), and the
    others nothing. Without, all sources are sampled alike. Within that, languages are divided by temperature, as
    `language_budgets` says. Memory is bounded by the sample, not by the corpus.

    Args:
        tables: what `index` gave.
        sizes: what `text_sizes` gave for them.

    Raises:
        ConfigError: a source with a weight has no training documents.
    """
    train = {(source, language): size for (split, source, language), size in sizes.items() if split == TRAIN}
    sources = sorted({source for source, _ in train})
    total = sum(weights.values())
    pools = {source: int(sample_bytes * weight / total) for source, weight in weights.items() if weight > 0}
    unknown = sorted(pools.keys() - set(sources))
    if unknown:
        raise ConfigError(
            f"tokenizer.train.source_weights names {unknown[0]!r}, of which there are no documents to train on; the "
            f"sources are {', '.join(sources)}"
        )
    weighted, by_language = bool(pools), temperature != 1
    samples: dict[tuple[str, str], _Smallest] = {}  # "" stands for all sources, and for all languages
    for pool, budget in (pools or {"": sample_bytes}).items():
        languages: dict[str, int] = {}
        for (source, language), size in train.items():
            if pool in ("", source):
                name = language if by_language else ""
                languages[name] = languages.get(name, 0) + size
        budgets = language_budgets(budget, languages, temperature) if by_language else {"": budget}
        samples |= {(pool, language): _Smallest(most) for language, most in budgets.items()}
    for table in tables:
        columns = {name: table[name].cast(pa.string()).to_numpy() for name in ("source", "language")}
        in_train = ~is_validation(table["validation_hash"].to_numpy(), limit)
        for (pool, language), smallest in samples.items():
            chosen = in_train & (columns["source"] == pool) if pool else in_train
            chosen = chosen & (columns["language"] == language) if language else chosen
            smallest.add(table["sample_hash"].to_numpy()[chosen], table["bytes"].to_numpy()[chosen])
    shares = []
    for source, language in sorted(train if by_language else {(source, "") for source in sources}):
        smallest = samples.get((source if weighted else "", language))
        if smallest is not None and len(smallest.hashes):
            shares.append(Share(source, language or None, int(smallest.hashes[-1]), smallest.most_bytes))
    return shares


def language_budgets(budget: int, sizes: Mapping[str, int], temperature: float) -> dict[str, int]:
    """Divide `budget` bytes over languages in proportion to size ** (1 / temperature).

    What a language does not have is divided among the others in the same way. Arivazhagan et al. 2019 (Massively
    Multilingual Neural Machine Translation in the Wild, section 3.2) sample languages so, with T = 5.
    """
    budgets: dict[str, int] = {}
    remaining = budget
    while True:
        open_ = {language: size ** (1 / temperature) for language, size in sizes.items() if language not in budgets}
        total = sum(open_.values())
        parts = {language: int(remaining * weight / total) for language, weight in open_.items()}
        whole = [language for language, part in parts.items() if part >= sizes[language]]
        if not whole:
            return dict(sorted({**budgets, **parts}.items()))
        for language in whole:
            budgets[language] = sizes[language]
            remaining -= sizes[language]


class _Smallest:
    """The documents with the smallest hashes that are within a number of bytes, and at least one."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.hashes, self.sizes = np.empty(0, np.uint64), np.empty(0, np.int64)

    def add(self, hashes: np.ndarray, sizes: np.ndarray) -> None:
        hashes, sizes = np.concatenate([self.hashes, hashes]), np.concatenate([self.sizes, sizes])
        order = np.argsort(hashes, kind="stable")
        hashes, sizes = hashes[order], sizes[order]
        within = max(1, int(np.searchsorted(np.cumsum(sizes), self.most_bytes, side="right")))
        self.hashes, self.sizes = hashes[:within], sizes[:within]
