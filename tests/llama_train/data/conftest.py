"""Small shards whose every token id says where it lies."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards.reader import ShardRoot, open_root
from data_pipeline.shards.writer import ShardSetWriter, write_root

VOCABULARY = 60000
FIRST_ID = {"books": 0, "web": 20000, "tiny": 40000}


def write_source(directory: Path, source: str, lengths: list[int], max_shard_bytes: int) -> None:
    """Documents of `lengths` tokens; the ids count up from FIRST_ID over the whole source."""
    token = FIRST_ID[source]
    with ShardSetWriter(directory, "f" * 64, VOCABULARY, max_shard_bytes) as writer:
        for row, length in enumerate(lengths):
            origin = {
                "record_id": f"{row:032x}",
                "source": source,
                "file": f"{source}.jsonl",
                "row": row,
                "url": f"https://example.org/{source}/{row}",
                "language": "en",
                "first_words": f"[{source}] document number {row} begins like this",
            }
            writer.add(np.arange(token, token + length), origin)
            token += length


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> ShardRoot:
    """Sources books (4 shards) and web (3 shards) for training and validation."""
    directory = tmp_path_factory.mktemp("shards")
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "tokenizer.model").write_bytes(b"a tokenizer")
    random = np.random.default_rng(0)
    write_source(directory / "train" / "books", "books", random.integers(2, 60, 100).tolist(), max_shard_bytes=1700)
    write_source(directory / "train" / "web", "web", random.integers(2, 60, 50).tolist(), max_shard_bytes=1100)
    write_source(directory / "validation" / "books", "books", random.integers(2, 60, 20).tolist(), max_shard_bytes=500)
    write_source(directory / "validation" / "web", "web", random.integers(2, 60, 10).tolist(), max_shard_bytes=500)
    tokenizer = {
        "file": "tokenizer/tokenizer.model",
        "fingerprint": "f" * 64,
        "vocabulary_size": VOCABULARY,
        "bos_id": 1,
        "eos_id": 2,
    }
    write_root(directory, tokenizer, {"train": ["books", "web"], "validation": ["books", "web"]})
    return open_root(directory)
