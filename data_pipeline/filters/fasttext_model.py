"""Reads a compressed fastText classifier (.ftz) and applies it in a compiled kernel, to the same answers as fastText.

The features of a text are its words that the dictionary holds and their character n-grams (Bojanowski et al. 2017,
arXiv:1607.04606), pruned and product-quantised (Joulin et al. 2016, arXiv:1612.03651); their vectors are averaged and
a binary tree of logistic nodes over the labels (hierarchical softmax) gives each label its probability.
"""

import heapq
import struct
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa

from data_pipeline.filters.word_hashes import text_buffers

_MAGIC, _VERSION = 793712314, 12
_HIERARCHICAL_SOFTMAX, _SUPERVISED = 1, 3
_CACHED_WORDS = 1 << 14  # words whose sum is kept: most words of a text have come before


@dataclass(frozen=True)
class Model:
    """D: size of a vector; F: features that survived the pruning; L: labels."""

    labels: tuple[str, ...]
    vectors: np.ndarray  # float32 [F, D]
    word_keys: np.ndarray  # uint64 [power of 2]: 64-bit hash of a word, 0: empty
    word_features: np.ndarray  # int32 [same]: row of vectors
    bucket_features: np.ndarray  # int32 [buckets]: row of an n-gram's bucket, −1: pruned
    shortest: int  # characters of an n-gram
    longest: int
    end_of_line: int  # the row of what stands behind every text
    nodes: np.ndarray  # float32 [L, D], the last one unused
    left: np.ndarray  # int32 [2 L − 1], −1: a label
    right: np.ndarray  # int32 [2 L − 1]

    def predict(self, texts: pa.Array, max_bytes: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (int32 [texts] index of the likeliest label, float32 [texts] its probability).

        Args:
            max_bytes: of a text are read, cut before a character that they would split; 0: all.
        """
        offsets, data = text_buffers(texts)
        return _predict(
            offsets, data, max_bytes, self.vectors, self.word_keys, self.word_features, self.bucket_features,
            self.shortest, self.longest, self.end_of_line, self.nodes, self.left, self.right,
        )  # fmt: skip


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def numbers(self, layout: str) -> tuple:
        values = struct.unpack_from(f"<{layout}", self.content, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def array(self, dtype: type, count: int) -> np.ndarray:
        values = np.frombuffer(self.content, dtype, count, self.position)
        self.position += values.nbytes
        return values

    def name(self) -> bytes:
        end = self.content.index(b"\0", self.position)
        name, self.position = self.content[self.position : end], end + 1
        return name


def read_model(path: Path) -> Model:
    """Read a supervised, pruned and quantised model with hierarchical softmax; others are not needed here."""
    reader = _Reader(path.read_bytes())
    assert reader.numbers("ii") == (_MAGIC, _VERSION)
    dimension, _, _, _, _, word_ngrams, loss, kind, buckets, shortest, longest, _ = reader.numbers("12i")
    assert (word_ngrams, loss, kind) == (1, _HIERARCHICAL_SOFTMAX, _SUPERVISED)
    reader.numbers("d")
    entries, words, labels, _, pruned = reader.numbers("iiiqq")
    named = [(reader.name(), *reader.numbers("qb")) for _ in range(entries)]
    assert all(kind == int(place >= words) for place, (_, _, kind) in enumerate(named))
    bucket_features = np.full(buckets, -1, np.int32)
    pairs = reader.array(np.int32, 2 * pruned).reshape(-1, 2)
    bucket_features[pairs[:, 0]] = words + pairs[:, 1]
    assert reader.numbers("?") == (True,)
    vectors_FD = _quantised(reader)
    assert vectors_FD.shape == (words + pruned, dimension)
    [quantised] = reader.numbers("?")
    rows, columns = (0, 0) if quantised else reader.numbers("qq")
    nodes_LD = _quantised(reader) if quantised else reader.array(np.float32, rows * columns).reshape(rows, columns)
    keys, features = _word_table([name for name, _, _ in named[:words]])
    left, right = _tree([count for _, count, _ in named[words:]])
    label_names = tuple(name.decode().removeprefix("__label__") for name, _, _ in named[words:])
    assert len(label_names) == labels == len(nodes_LD)
    end_of_line = [name for name, _, _ in named[:words]].index(b"</s>")
    return Model(
        label_names, vectors_FD, keys, features, bucket_features, shortest, longest, end_of_line, nodes_LD, left, right
    )


def _quantised(reader: _Reader) -> np.ndarray:
    """Return the float32 matrix that a product quantiser stands for."""
    with_norms, rows, _, size = reader.numbers("?qqi")
    codes = reader.array(np.uint8, size).reshape(rows, -1)
    matrix = _centroids(reader, codes)
    if with_norms:
        norm_codes = reader.array(np.uint8, rows).reshape(rows, 1)
        matrix = matrix * _centroids(reader, norm_codes)
    return np.ascontiguousarray(matrix, np.float32)


def _centroids(reader: _Reader, codes: np.ndarray) -> np.ndarray:
    dimension, parts, width, last_width = reader.numbers("4i")
    values = reader.array(np.float32, dimension * 256)
    columns = []
    for part in range(parts):
        own = last_width if part == parts - 1 else width
        table = values[part * 256 * width : part * 256 * width + 256 * own].reshape(256, own)
        columns.append(table[codes[:, part]])
    return np.concatenate(columns, axis=1)


def _word_table(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    size = 1 << (4 * len(words)).bit_length()
    keys, features = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
    for feature, word in enumerate(words):
        key = _word_key(np.frombuffer(word, np.uint8), 0, len(word))
        slot = int(key) & (size - 1)
        while keys[slot]:
            slot = (slot + 1) & (size - 1)
        keys[slot], features[slot] = key, feature
    return keys, features


def _tree(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the children of each node of the Huffman tree; labels come first, most frequent first, then the nodes.

    fastText takes the two smallest of both queues, a label before a node only where its count is smaller.
    """
    labels = len(counts)
    left, right = np.full(2 * labels - 1, -1, np.int32), np.full(2 * labels - 1, -1, np.int32)
    queue = [(count, 1, -label, label) for label, count in enumerate(counts)]
    heapq.heapify(queue)
    for node in range(labels, 2 * labels - 1):
        (count, *_, left[node]), (other, *_, right[node]) = heapq.heappop(queue), heapq.heappop(queue)
        heapq.heappush(queue, (count + other, 0, node, node))
    return left, right


@numba.njit(cache=True, nogil=True, inline="always")
def _word_key(data, start, end):
    key = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
    for place in range(start, end):
        key = (key ^ np.uint64(data[place])) * np.uint64(0x100000001B3)
    return key


@numba.njit(cache=True, nogil=True, inline="always")
def _is_space(byte):
    return byte == 0x20 or 0x09 <= byte <= 0x0D or byte == 0


@numba.njit(cache=True, nogil=True)
def _add(total_D, vectors_FD, feature):
    for column in range(total_D.size):
        total_D[column] += vectors_FD[feature, column]


@numba.njit(cache=True, nogil=True)
def _add_ngrams(total_D, vectors_FD, bucket_features, shortest, longest, word, size):
    """Add the n-grams of `word`, which has its < and > around it; return how many."""
    count = 0
    for start in range(size):
        if word[start] & 0xC0 == 0x80:
            continue
        key = np.uint32(2166136261)  # FNV-1a, 32 bits, of signed bytes as fastText has it
        end = start
        length = 1
        while end < size and length <= longest:
            while True:
                signed = np.uint32(np.int32(np.int8(word[end])))
                key = np.uint32((key ^ signed) * np.uint32(16777619))
                end += 1
                if end >= size or word[end] & 0xC0 != 0x80:
                    break
            if length >= shortest and not (length == 1 and (start == 0 or end == size)):
                feature = bucket_features[key % np.uint32(bucket_features.size)]
                if feature >= 0:
                    _add(total_D, vectors_FD, feature)
                    count += 1
            length += 1
    return count


@numba.njit(cache=True, nogil=True)
def _likeliest(hidden_D, nodes_LD, left, right):
    """Return (label, probability): the product along its way down, each factor with fastText's guard of 1e-5."""
    labels = nodes_LD.shape[0]
    logarithms = np.zeros(2 * labels - 1, np.float32)
    best, best_logarithm = 0, np.float32(-np.inf)
    for node in range(2 * labels - 2, -1, -1):  # a parent has a higher number than its children
        if left[node] < 0:
            if logarithms[node] >= best_logarithm:
                best, best_logarithm = node, logarithms[node]
            continue
        product = np.float32(0)
        for column in range(hidden_D.size):
            product += nodes_LD[node - labels, column] * hidden_D[column]
        share = np.float32(1.0 / (1.0 + np.exp(-np.float64(product))))
        logarithms[left[node]] = logarithms[node] + np.float32(np.log((1.0 - np.float64(share)) + 1e-5))
        logarithms[right[node]] = logarithms[node] + np.float32(np.log(np.float64(share) + 1e-5))
    return best, np.float32(np.exp(best_logarithm))


@numba.njit(cache=True, nogil=True)
def _predict(
    offsets, data, max_bytes, vectors_FD, word_keys, word_features, bucket_features, shortest, longest, end_of_line,
    nodes_LD, left, right,
):  # fmt: skip
    found = np.zeros(offsets.size - 1, np.int32)
    probabilities = np.zeros(offsets.size - 1, np.float32)
    word = np.empty(256, np.uint8)
    mask = np.uint64(word_keys.size - 1)
    total_D = np.zeros(vectors_FD.shape[1], np.float32)
    cached_keys = np.zeros(_CACHED_WORDS, np.uint64)
    cached_counts = np.zeros(_CACHED_WORDS, np.int64)
    cached_D = np.zeros((_CACHED_WORDS, total_D.size), np.float32)
    for document in range(offsets.size - 1):
        place, end = offsets[document], offsets[document + 1]
        if max_bytes and end - place > max_bytes:
            end = place + max_bytes
            while end > place and data[end] & 0xC0 == 0x80:
                end -= 1
        total_D[:] = 0
        count = 0
        while place < end:
            if _is_space(data[place]):
                place += 1
                continue
            start = place
            while place < end and not _is_space(data[place]):
                place += 1
            key = _word_key(data, start, place)
            home = np.int64(key & np.uint64(_CACHED_WORDS - 1))
            own_D = cached_D[home]
            if cached_keys[home] != key:
                cached_keys[home] = key
                cached_counts[home] = 0
                own_D[:] = 0
                slot = key & mask
                while word_keys[slot] != 0 and word_keys[slot] != key:
                    slot = (slot + np.uint64(1)) & mask
                if word_keys[slot] == key:
                    _add(own_D, vectors_FD, word_features[slot])
                    cached_counts[home] = 1
                if word_keys[slot] != key or word_features[slot] != end_of_line:
                    size = place - start + 2
                    if size > word.size:
                        word = np.empty(2 * size, np.uint8)
                    word[0], word[size - 1] = 0x3C, 0x3E
                    for offset in range(size - 2):
                        word[1 + offset] = data[start + offset]
                    cached_counts[home] += _add_ngrams(
                        own_D, vectors_FD, bucket_features, shortest, longest, word, size
                    )
            _add(total_D, cached_D, home)
            count += cached_counts[home]
        _add(total_D, vectors_FD, end_of_line)
        share = np.float32(1.0 / (count + 1))
        for column in range(total_D.size):
            total_D[column] *= share
        found[document], probabilities[document] = _likeliest(total_D, nodes_LD, left, right)
    return found, probabilities
