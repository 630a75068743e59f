"""JSON whose brackets are nested deeper than Python reads is refused like any other damaged file."""

import pytest

from data_pipeline.shards.manifest import MANIFEST, ROOT, read_manifest, read_shards_json
from data_pipeline.tokenize import load_tokenizer
from llama_foundation.errors import UserError
from llama_train.checkpoint.index import INDEX, parse_index
from llama_train.checkpoint.index_writer import seal
from llama_train.data.amendments import AMENDMENTS, read_amendments
from llama_train.observe.metrics import next_attempt, read

NESTED = "[" * 100_000


def test_brackets_inside_of_brackets_are_refused_everywhere(tmp_path):
    for name in (MANIFEST, ROOT, AMENDMENTS, "metrics.jsonl", "tokenizer.json"):
        (tmp_path / name).write_text(('{"a":' if name == "tokenizer.json" else "") + NESTED + "\n")
    for parse in (read_manifest, read_shards_json, read_amendments, load_tokenizer):
        with pytest.raises(UserError):
            parse(tmp_path)
    with pytest.raises(UserError):
        list(read(tmp_path / "metrics.jsonl"))
    assert next_attempt(tmp_path / "metrics.jsonl") == 1
    with pytest.raises(UserError):
        parse_index(seal(('{"a":' + NESTED).encode()), INDEX)


def test_an_attempt_that_is_no_number_counts_for_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"attempt": Infinity}\n{"attempt": 2}\n')
    assert next_attempt(tmp_path / "metrics.jsonl") == 3
