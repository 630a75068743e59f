"""Exact deduplication: of all documents with the same normalised text, one stays.

The text is normalised to Unicode NFC with every run of white space folded to one space, and compared by its 128-bit
xxh3 hash.
"""

import unicodedata
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from data_pipeline.chain import Chain
from data_pipeline.dedup.by_key import deduplicate
from data_pipeline.dedup.survivors import KeepOrder
from data_pipeline.document import Documents
from data_pipeline.engines.work import Block
from data_pipeline.report.statistics import StageStatistics

NAME = "exact_dedup"
VERSION = 2


@dataclass
class ExactDedup(KeepOrder):
    """Which copies compete, and which of them stays."""


def run(chain: Chain, blocks: list[Block], settings: ExactDedup) -> tuple[list[Block], list[StageStatistics]]:
    """Keep one document of each text."""
    return deduplicate(chain, NAME, VERSION, keys, settings, blocks)


def keys(documents: Documents) -> pa.Array:
    """Return binary(16) [documents]."""
    return pa.array([text_key(text) for text in documents.batch["text"].to_pylist()], pa.binary(16))


def text_key(text: str) -> bytes:
    """Return the 16-byte hash of the normalised text."""
    return xxhash.xxh3_128_digest(" ".join(unicodedata.normalize("NFC", text).split()).encode())
