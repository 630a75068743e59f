"""Which documents are held out for validation, and which ones a tokenizer is trained on.

Both choices are made by keyed hashes of the record id: they depend on the documents, not on how they are cut up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipeline.document import keyed_hashes, text_bytes
from llama_foundation.errors import ConfigError, DataError

TRAIN = "train"
VALIDATION = "validation"


def index(batch: pa.RecordBatch, seed: int) -> pa.Table:
    """Return for each document its two hashes (uint64), its size in bytes and its source: all that the choices need."""
    record_ids = batch["record_id"].to_pylist()
    return pa.table(
        {
            "validation_hash": keyed_hashes(record_ids, VALIDATION, seed),
            "sample_hash": keyed_hashes(record_ids, "tokenizer sample", seed),
            "bytes": text_bytes(batch),
            "source": batch["source"].dictionary_encode(),
        }
    )


def validation_limit(tables: Iterable[pa.Table], fraction: float) -> int:
    """Return the limit: documents with a validation hash below it are held out.

    Where the fraction catches none, the one document with the smallest hash is.

    Raises:
        DataError: nothing would be left to train on.
    """
    if fraction == 0:
        return 0
    limit = int(fraction * 2**64)
    smallest, largest = 2**64, -1
    for table in tables:
        hashes = table["validation_hash"].to_numpy()
        smallest, largest = min(smallest, int(hashes.min())), max(largest, int(hashes.max()))
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


@dataclass(frozen=True)
class Share:
    """What a tokenizer's sample takes of a source: training documents with a sample hash up to `largest_hash`.

    One document is taken even if it is larger than `most_bytes`; its text is then cut to that.
    """

    largest_hash: int
    most_bytes: int


def sample_shares(
    tables: Iterable[pa.Table], limit: int, sample_bytes: int, weights: Mapping[str, float]
) -> dict[str, Share]:
    """Return source -> its share of a sample of `sample_bytes` of text.

    With `weights`, each source named there gets that part of `sample_bytes` (all its text where it has less), and the
    others nothing. Without, all sources are sampled alike. Memory is bounded by the sample, not by the corpus.

    Raises:
        ConfigError: a source with a weight has no training documents.
    """
    total = sum(weights.values())
    budgets = {source: int(sample_bytes * weight / total) for source, weight in weights.items() if weight > 0}
    samples = {source: _Smallest(budget) for source, budget in budgets.items()} or {"": _Smallest(sample_bytes)}
    seen: set[str] = set()
    for table in tables:
        sources = table["source"].cast(pa.string()).to_numpy()
        train = ~is_validation(table["validation_hash"].to_numpy(), limit)
        seen.update(sources[train])
        for source, smallest in samples.items():
            chosen = train & (sources == source) if budgets else train
            smallest.add(table["sample_hash"].to_numpy()[chosen], table["bytes"].to_numpy()[chosen])
    unknown = sorted(budgets.keys() - seen)
    if unknown:
        raise ConfigError(
            f"tokenizer.train.source_weights names {unknown[0]!r}, of which there are no documents to train on; the "
            f"sources are {', '.join(sorted(seen))}"
        )
    return {source: samples[source if budgets else ""].share() for source in sorted(budgets.keys() or seen)}


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

    def share(self) -> Share:
        return Share(int(self.hashes[-1]), self.most_bytes)
