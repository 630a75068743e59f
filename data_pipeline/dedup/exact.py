"""Exact deduplication: of all documents with the same normalised text, one stays.

The text is normalised to Unicode NFC with every run of white space folded to one space, and compared by its 128-bit
xxh3 hash.
"""

import unicodedata
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.chain import Chain
from data_pipeline.dedup.by_key import deduplicate
from data_pipeline.dedup.characters import TABLE_SIZE, composing, decode, white_space
from data_pipeline.dedup.hashing import text_buffers
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
    return text_keys(documents.batch["text"])


def text_keys(texts: pa.Array) -> pa.Array:
    """Return binary(16) [texts]: the hash of ' '.join(text.split()) in NFC, for each of a large_string array."""
    data, offsets = text_buffers(texts)
    folded = np.empty(max(int(np.diff(offsets).max(initial=0)), 1), np.uint8)
    view = memoryview(folded)
    digests = bytearray()
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        size, may_compose = fold_white_space(data, start, end, white_space(), composing(), folded)
        text = view[:size]
        if may_compose:
            text = unicodedata.normalize("NFC", bytes(text).decode()).encode()
        digests += xxhash.xxh3_128_digest(text)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(texts), [None, pa.py_buffer(bytes(digests))])


@numba.njit(cache=True, nogil=True)
def fold_white_space(
    data: np.ndarray, start: int, end: int, spaces: np.ndarray, composes: np.ndarray, out: np.ndarray
) -> tuple[int, bool]:
    """Write data[start:end] to `out` with runs of white space as one space and none at the ends.

    Args:
        data, out: UTF-8, uint8; `out` has room for the whole text.
        spaces, composes: `characters.white_space` and `characters.composing`.

    Returns:
        The bytes written, and whether the text may differ from its NFC.
    """
    size, place = 0, start
    waiting, may_compose = False, False
    while place < end:
        before = place
        code_point = np.int64(data[place])
        if code_point < 0x80:
            place += 1
        else:
            code_point, place = decode(data, place)
            may_compose |= code_point >= TABLE_SIZE or composes[code_point]
        if code_point < TABLE_SIZE and spaces[code_point]:
            waiting = size > 0
            continue
        if waiting:
            out[size] = 0x20
            size += 1
            waiting = False
        for each in range(before, place):
            out[size] = data[each]
            size += 1
    return size, may_compose
