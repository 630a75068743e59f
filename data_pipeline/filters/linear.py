"""A linear model over hashed word n-grams: logistic regression, the classifier behind `quality` and `nsfw`.

The features of a text are its different word 1- to n-grams (`word_hashes.py`), each hashed into one of 2**bits buckets;
each bucket that occurs counts 1 / sqrt(how many occur), so that a text has length 1 whatever its size. Training is
AdaGrad (Duchi, Hazan and Singer 2011) over the documents in a keyed-hash order, one after the other, in float64 with
IEEE + − × ÷ and sqrt only: the same texts and settings give the same bytes.
"""

import json
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipeline.filters.word_hashes import extend, words_of
from llama_foundation.errors import DataError

FORMAT = "llama-train linear 1"
QUANTILES = 1001
LARGEST_BITS = 26  # 256 MiB of float32 weights
MOST_NGRAMS = 5


@dataclass(frozen=True)
class Features:
    """How a text becomes features; a model applies to nothing else."""

    ngrams: int = 2  # words, at most
    bits: int = 20  # 2**bits buckets
    max_bytes: int = 20_000  # of a text, from its start; 0: all


@dataclass(frozen=True)
class LinearModel:
    """Weights, and the scores that held-out ordinary (negative) text gets."""

    features: Features
    weights: np.ndarray  # float32 [2**bits]
    bias: float
    ordinary: np.ndarray  # float64 [QUANTILES]: quantiles 0 to 1 of the scores of held-out negative texts; NaN: unknown

    def scores(self, texts: pa.Array) -> np.ndarray:
        """Return float64 [texts]: the probability of the positive class; NaN where a text has no word."""
        offsets, words = words_of(texts, self.features.max_bytes)
        return _scores(offsets, words, self.weights, self.bias, self.features.ngrams)

    def threshold_for(self, keep_fraction: float) -> float:
        """Return the score that `keep_fraction` of ordinary text reaches."""
        return float(np.interp(1 - keep_fraction, np.linspace(0, 1, QUANTILES), self.ordinary))


@dataclass(frozen=True)
class Training:
    """How the weights are found."""

    epochs: int = 10
    learning_rate: float = 0.5
    weight_decay: float = 1e-5  # L2, on the buckets that a document has
    seed: int = 0  # of the order


def train(texts: pa.Array, positive: np.ndarray, features: Features, training: Training) -> LinearModel:
    """Fit the weights; both classes weigh the same, however many texts they have.

    Args:
        texts: large_string, in any order that is always the same.
        positive: bool [texts].
    """
    offsets, words = words_of(texts, features.max_bytes)
    rows, buckets = _distinct_buckets(offsets, words, features.ngrams, features.bits)
    labels = positive.astype(np.float64)
    shares = np.where(positive, positive.mean(), 1 - positive.mean())
    weights = np.zeros(1 << features.bits)
    gathered = np.full(1 << features.bits, 1e-6)
    bias = np.zeros(2)  # the bias and what it has gathered
    generator = np.random.Generator(np.random.Philox(training.seed))
    for _ in range(training.epochs):
        order = np.argsort(generator.random(len(texts)), kind="stable")
        _epoch(
            order, rows, buckets, labels, 0.5 / shares, weights, gathered, bias,
            training.learning_rate, training.weight_decay,
        )  # fmt: skip
    unknown = np.full(QUANTILES, np.nan)
    return LinearModel(features, weights.astype(np.float32), float(bias[0]), unknown)


def save_model(model: LinearModel, about: dict[str, object]) -> bytes:
    """Return the model as safetensors; settings and `about` are in its header, under one key so that order is fixed."""
    header = {"format": FORMAT, "features": asdict(model.features), "about": about}
    tensors = {"weights": model.weights, "bias": np.array([model.bias]), "ordinary": model.ordinary}
    return save(tensors, {"llama_train": json.dumps(header, sort_keys=True)})


@lru_cache(maxsize=4)
def load_model(path: str) -> LinearModel:
    """Read a model of `llama-quality`.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the model cannot be read: {error.strerror}") from error
    try:
        header_size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + header_size])["__metadata__"]["llama_train"])
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, not {FORMAT!r}")
        tensors = load(content)
        features = Features(**header["features"])
        if not all(type(number) is int for number in astuple(features)) or not 1 <= features.bits <= LARGEST_BITS:
            raise ValueError(f"its features are {features}")
        model = LinearModel(features, tensors["weights"], float(tensors["bias"][0]), tensors["ordinary"])
        shapes = (model.weights.shape, model.weights.dtype.name, model.ordinary.shape)
        if not 1 <= features.ngrams <= MOST_NGRAMS or shapes != ((1 << features.bits,), "float32", (QUANTILES,)):
            raise ValueError(f"its tensors are {shapes}, which does not fit {features}")
        if not (np.isfinite(model.weights).all() and np.isfinite(model.bias)):
            raise ValueError("it has weights that are no numbers")
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
        raise DataError(f"{path}: is not a model made by llama-quality: {error}") from error
    return model


@numba.njit(cache=True, nogil=True)
def exponential(x):
    """e**x for |x| <= 700 from + and × alone, so that it is the same on every machine (C libraries differ)."""
    whole = np.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - whole * 0.693145751953125) - whole * 1.4286068203094172e-06  # ln 2 in two parts
    total = 1.0
    for k in range(18, 0, -1):
        total = 1.0 + total * rest / k
    factor = 2.0 if whole > 0 else 0.5
    for _ in range(np.int64(abs(whole))):
        total *= factor
    return total


@numba.njit(cache=True, nogil=True)
def _probability(z):
    bounded = min(max(z, -700.0), 700.0)
    return 1.0 / (1.0 + exponential(-bounded))


@numba.njit(cache=True, nogil=True)
def _document_buckets(words, first, last, ngrams, shift, seen, stamp, found):
    """Write the different buckets of one text to `found`, as they first occur; return how many."""
    count = 0
    for start in range(first, last):
        gram = words[start]
        for end in range(start + 1, min(start + ngrams, last) + 1):
            if end > start + 1:
                gram = extend(gram, words[end - 1])
            bucket = np.int64((gram * np.uint64(0xD6E8FEB86659FD93)) >> shift)
            if seen[bucket] != stamp:
                seen[bucket] = stamp
                found[count] = bucket
                count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _longest(offsets):
    longest = 0
    for document in range(offsets.size - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    return longest


@numba.njit(cache=True, nogil=True)
def _scores(offsets, words, weights, bias, ngrams):
    bits = 0
    while 1 << bits < weights.size:
        bits += 1
    shift = np.uint64(64 - bits)
    seen = np.zeros(weights.size, np.int32)
    found = np.empty(_longest(offsets) * ngrams, np.int32)
    scores = np.full(offsets.size - 1, np.nan)
    for document in range(offsets.size - 1):
        first, last = offsets[document], offsets[document + 1]
        count = _document_buckets(words, first, last, ngrams, shift, seen, document + 1, found)
        if count:
            total = 0.0
            for index in range(count):
                total += np.float64(weights[found[index]])
            scores[document] = _probability(bias + total / np.sqrt(np.float64(count)))
    return scores


@numba.njit(cache=True, nogil=True)
def _distinct_buckets(offsets, words, ngrams, bits):
    shift = np.uint64(64 - bits)
    seen = np.zeros(1 << bits, np.int32)
    found = np.empty(_longest(offsets) * ngrams, np.int32)
    rows = np.zeros(offsets.size, np.int64)
    buckets = np.empty(words.size * ngrams, np.int32)
    total = 0
    for document in range(offsets.size - 1):
        first, last = offsets[document], offsets[document + 1]
        count = _document_buckets(words, first, last, ngrams, shift, seen, document + 1, found)
        buckets[total : total + count] = found[:count]
        total += count
        rows[document + 1] = total
    return rows, buckets[:total].copy()


@numba.njit(cache=True, nogil=True)
def _epoch(order, rows, buckets, labels, importance, weights, gathered, bias, learning_rate, weight_decay):
    for document in order:
        first, last = rows[document], rows[document + 1]
        if first == last:
            continue
        value = 1.0 / np.sqrt(np.float64(last - first))
        total = 0.0
        for index in range(first, last):
            total += weights[buckets[index]]
        error = (_probability(bias[0] + total * value) - labels[document]) * importance[document]
        for index in range(first, last):
            bucket = buckets[index]
            gradient = error * value + weight_decay * weights[bucket]
            gathered[bucket] += gradient * gradient
            weights[bucket] -= learning_rate * gradient / np.sqrt(gathered[bucket])
        bias[1] += error * error
        bias[0] -= learning_rate * error / np.sqrt(bias[1] + 1e-6)
