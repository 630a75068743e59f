"""The benchmarks as one small index: which n-grams they have, and where in which example."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.dedup.windows import window_hashes
from data_pipeline.dedup.word_spans import word_spans
from llama_foundation.errors import DataError

EXAMPLES = pa.schema([("benchmark", pa.string()), ("words", pa.list_(pa.uint64())), ("seconds", pa.list_(pa.uint64()))])
"""One row per example: the two hashes of each of its folded words."""


def read_examples(name: str, path: Path, fields: list[str]) -> list[str]:
    """Return the text of every example of a benchmark file.

    Raises:
        DataError: the file cannot be read, is empty, or a line is not a record with one of the fields.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"pipeline.decontaminate.benchmarks.{name}={path} cannot be read: {error}") from error
    examples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        examples.append(_record(line, f"{path}, line {number}", fields) if _is_json(path) else line)
    if not examples:
        raise DataError(f"pipeline.decontaminate.benchmarks.{name}={path} has no examples")
    return examples


def _is_json(path: Path) -> bool:
    return path.suffix in (".jsonl", ".ndjson")


def _record(line: str, where: str, fields: list[str]) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where} is not a JSON object")
    parts = [_text(record[field]) for field in fields if record.get(field) is not None]
    if not parts:
        raise DataError(
            f"{where} has none of pipeline.decontaminate.fields={fields}; it has {', '.join(map(str, record))}"
        )
    return " ".join(parts)


def _text(value: object) -> str:
    """Return strings as they are, and what a list or an object holds one behind the other."""
    if isinstance(value, dict):
        value = list(value.values())
    return " ".join(map(_text, value)) if isinstance(value, list) else str(value)


def examples_table(benchmarks: dict[str, str], fields: list[str]) -> pa.Table:
    """Return EXAMPLES of all benchmarks, in the order of their names."""
    names, texts = [], []
    for name, path in sorted(benchmarks.items()):
        found = read_examples(name, Path(path), fields)
        names += [name] * len(found)
        texts += found
    words = word_spans(pa.array(texts, pa.large_string()), folded=True)
    offsets = pa.array(words.offsets, pa.int32())
    columns = (pa.ListArray.from_arrays(offsets, pa.array(each)) for each in (words.first, words.second))
    return pa.table([pa.array(names), *columns], schema=EXAMPLES)


@dataclass(frozen=True)
class Index:
    """All n-grams of the examples.

    benchmarks      the benchmark of each example
    words           uint64, the words of all examples; those of example i are words[offsets[i] : offsets[i + 1]]
    offsets         int64 [examples + 1]
    first, second   uint64 [n-grams], two hashes of each different n-gram, ascending by the first
    places          int64: where in `words` each n-gram occurs; those of n-gram g are places[starts[g] : starts[g + 1]]
    starts          int64 [n-grams + 1]
    """

    benchmarks: list[str]
    words: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    second: np.ndarray
    places: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, examples: pa.Table, ngram: int) -> "Index":
        """Index EXAMPLES by n-grams of `ngram` words."""
        examples = examples.combine_chunks()
        words, seconds = (examples[name].combine_chunks().flatten().to_numpy() for name in ("words", "seconds"))
        offsets = examples["words"].combine_chunks().offsets.to_numpy().astype(np.int64)
        first, second = window_hashes(words, ngram), window_hashes(seconds, ngram)
        owner = np.searchsorted(offsets, np.arange(len(first)), "right") - 1
        places = np.flatnonzero(np.arange(len(first)) + ngram <= offsets[owner + 1])
        places = places[np.lexsort((places, second[places], first[places]))]
        first, second = first[places], second[places]
        heads = np.ones(len(places), bool)
        heads[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        starts = np.r_[np.flatnonzero(heads), len(places)]
        return cls(examples["benchmark"].to_pylist(), words, offsets, first[heads], second[heads], places, starts)

    def sieve(self) -> np.ndarray:
        """Return bool [a power of two]: false at `first & (size - 1)` says that no n-gram has this hash."""
        sieve = np.zeros(1 << max(10, int(16 * len(self.first)).bit_length()), bool)
        sieve[self.first & np.uint64(len(sieve) - 1)] = True
        return sieve

    def find(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return int64 [n-grams of a text]: the n-gram of the index that each is, -1 where it is none."""
        if not len(self.first):
            return np.full(len(first), -1, np.int64)
        place = np.minimum(np.searchsorted(self.first, first), len(self.first) - 1)
        return np.where((self.first[place] == first) & (self.second[place] == second), place, -1)

    def example_of(self, places: np.ndarray) -> np.ndarray:
        """Return int64 [places]: the example that each place in `words` belongs to."""
        return np.searchsorted(self.offsets, places, "right") - 1
