"""Exact deduplication: of all documents with the same normalised text, one stays.

The text is normalised to Unicode NFC with every run of white space folded to one space, and compared by its 128-bit
xxh3 hash. The document that stays is the smallest by (source priority, record id), which depends on nothing but the
documents themselves.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.document import Documents

NAME = "exact_dedup"
VERSION = 1
REASON = f"{NAME}.duplicate"


@dataclass
class ExactDedup:
    """Whom to keep."""

    source_priority: list[str] = field(default_factory=list)  # best first; sources not named come after, as equals


def text_key(text: str) -> bytes:
    """Return the 16-byte hash of the normalised text."""
    return xxhash.xxh3_128_digest(" ".join(unicodedata.normalize("NFC", text).split()).encode())


def keys(documents: Documents, settings: ExactDedup) -> pa.Table:
    """Return one row per document: `key` (equal for duplicates), `priority` (smaller is better) and `record_id`."""
    ranks = {source: rank for rank, source in enumerate(settings.source_priority)}
    sources = documents.batch["source"].to_pylist()
    return pa.table(
        {
            "key": pa.array([text_key(view.text) for view in documents.views], pa.binary(16)),
            "priority": pa.array([ranks.get(source, len(ranks)) for source in sources], pa.int32()),
            "record_id": documents.batch["record_id"],
        }
    )


def losers(table: pa.Table) -> tuple[np.ndarray, Counter[int]]:
    """Decide a group of keys.

    Args:
        table: rows of `keys` from anywhere, with every row of each key that occurs in it.

    Returns:
        bool [rows], true where the document is dropped; and how many clusters there are of each size above 1.
    """
    key, record_id = _as_void(table["key"]), _as_void(table["record_id"])
    order = np.lexsort((record_id, table["priority"].to_numpy(), key))
    sorted_keys = key[order]
    repeats = np.zeros(len(order), bool)
    repeats[1:] = sorted_keys[1:] == sorted_keys[:-1]
    dropped = np.zeros(len(order), bool)
    dropped[order] = repeats
    starts = np.flatnonzero(~repeats)
    sizes = np.diff(np.append(starts, len(order)))
    return dropped, Counter(sizes[sizes > 1].tolist())


def _as_void(column: pa.ChunkedArray) -> np.ndarray:
    """Return the 16-byte values as an array that numpy can sort and compare byte by byte."""
    joined = column.combine_chunks()
    start = joined.offset * 16
    data = np.frombuffer(joined.buffers()[1], np.uint8)[start : start + len(joined) * 16]
    halves = data.reshape(-1, 16).copy().view(">u8")
    ranked = np.empty(len(joined), dtype=[("high", "<u8"), ("low", "<u8")])
    ranked["high"], ranked["low"] = halves[:, 0], halves[:, 1]
    return ranked
