"""Which documents are held out for validation, and which ones a tokenizer is trained on.

Both choices are made by keyed hashes of the record id: they depend on the documents, not on how they are cut up.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from data_pipeline.document import keyed_hashes, text_bytes
from llama_foundation.errors import DataError

TRAIN = "train"
VALIDATION = "validation"


def index(batch: pa.RecordBatch, seed: int) -> pa.Table:
    """Return for each document its two hashes (uint64) and its size in bytes: all that the choices need."""
    record_ids = batch["record_id"].to_pylist()
    return pa.table(
        {
            "validation_hash": keyed_hashes(record_ids, VALIDATION, seed),
            "sample_hash": keyed_hashes(record_ids, "tokenizer sample", seed),
            "bytes": text_bytes(batch),
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


def sample_limit(tables: Iterable[pa.Table], limit: int, sample_bytes: int) -> int:
    """Return the largest sample hash such that the training documents up to it are within `sample_bytes` of text.

    One document is always within. Memory is bounded by the sample, not by the corpus.
    """
    hashes, sizes = np.empty(0, np.uint64), np.empty(0, np.int64)
    for table in tables:
        train = ~is_validation(table["validation_hash"].to_numpy(), limit)
        hashes = np.concatenate([hashes, table["sample_hash"].to_numpy()[train]])
        sizes = np.concatenate([sizes, table["bytes"].to_numpy()[train]])
        order = np.argsort(hashes, kind="stable")
        hashes, sizes = hashes[order], sizes[order]
        within = max(1, int(np.searchsorted(np.cumsum(sizes), sample_bytes, side="right")))
        hashes, sizes = hashes[:within], sizes[:within]
    return int(hashes[-1])
