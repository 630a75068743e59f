"""Whatever the bytes, a file is read or refused by name: no crash, no endless loop, no memory that a number asks for.

Files with a checksum are sealed again after they were changed, so that what lies behind it is reached.
"""

import json
import shutil
import struct
from pathlib import Path

import pytest
import tokenizers as tokenizers_library
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards.format import parse_index as parse_shard_index
from data_pipeline.shards.manifest import publish_sealed, read_manifest, read_shards_json
from data_pipeline.tokenize import load_tokenizer, train_byte_level, train_sentencepiece
from llama_foundation import compose
from llama_foundation.errors import CheckpointError, ConfigError, DataError
from llama_train.checkpoint.index import parse_index
from llama_train.checkpoint.index_writer import seal
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.config import TrainConfig
from llama_train.data.amendments import AMENDMENTS, read_amendments
from llama_train.observe.ledger import ledger_of
from llama_train.observe.metrics import next_attempt, read
from llama_train.prove.harness import make_shards
from tests.faults.fuzzing import FEW, bounded_memory, changed, changed_bytes, refusal
from tests.faults.test_injected import train_here

__all__ = ["bounded_memory"]

pytestmark = pytest.mark.usefixtures("bounded_memory")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz-shards")
    make_shards(directory, 101, 3_000)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    output = tmp_path_factory.mktemp("fuzz-run")
    tiny = ["model=tiny", "model.vocab_size=101", "model.context=32", f"data.shards={shards}", "steps=2"]
    data = ["data.sequence_length=32", "data.batch_size=4", "optimizer.learning_rate=1e-3", "logging.console=none"]
    assert train_here([*tiny, *data, "logging.report=false", f"output={output}", "name=run"]) == 0
    return output / "run"


@FEW
@given(data=st.data())
def test_a_shard_index(shards: Path, data: st.DataObject) -> None:
    path = next((shards / "train").rglob("*.idx"))
    content = path.read_bytes()
    if data.draw(st.booleans()):
        content = data.draw(changed_bytes(content))
    else:  # counts in the header that ask for more than there is
        count = data.draw(st.sampled_from([0, 1, 2**31, 2**62, 2**63 - 1]))
        content = content[:18] + struct.pack("<QQ", count, data.draw(st.sampled_from([0, 1, 2**62]))) + content[34:]
    size = path.with_suffix(".bin").stat().st_size
    error = refusal(DataError, lambda: parse_shard_index(path, memoryview(content), size))
    assert error is None or str(path) in error


@FEW
@given(data=st.data())
def test_a_manifest_and_the_list_of_shards(shards: Path, tmp_path: Path, data: st.DataObject) -> None:
    name, reader = data.draw(st.sampled_from([("manifest.json", read_manifest), ("shards.json", read_shards_json)]))
    original = json.loads(next(shards.rglob(name)).read_bytes())
    del original["checksum"]
    value = data.draw(changed(original))
    try:
        publish_sealed(tmp_path / name, value)
    except (TypeError, ValueError, UnicodeError):  # what JSON cannot hold is written as it is, without a seal
        (tmp_path / name).write_bytes(repr(value).encode(errors="replace"))
    error = refusal(DataError, lambda: reader(tmp_path))
    assert error is None or str(tmp_path) in error


@FEW
@given(data=st.data())
def test_the_index_of_a_checkpoint(run: Path, data: st.DataObject) -> None:
    content = next((run / "checkpoints").glob("step-*/index.json")).read_bytes()
    body = json.loads(content)
    del body["checksum"]
    if data.draw(st.booleans()):
        value = data.draw(changed(body))
        sealed = seal(json.dumps(value if isinstance(value, dict) else {"x": value}).encode())
    else:
        sealed = data.draw(changed_bytes(content))
    found = []
    error = refusal(CheckpointError, lambda: found.append(parse_index(sealed, "there")))
    assert error is None or "there" in error
    assert all(".." not in name and not name.startswith("/") for index in found for name in index.files)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    directory = tmp_path_factory.mktemp("fuzz-tokenizers")
    texts = ["the cat sat on the mat, and 17 dogs looked on " * 9]
    train_sentencepiece(texts, directory / "tokenizer.model", 280)
    train_byte_level(texts * 9, directory / "ranks.model", 512)
    huggingface = tokenizers_library.Tokenizer(tokenizers_library.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    huggingface.add_special_tokens(["<s>", "</s>"])
    paths = [directory / "tokenizer.model", directory / "ranks.model"]
    return [*(path.read_bytes() for path in paths), huggingface.to_str().encode()]


@FEW
@given(data=st.data())
def test_a_tokenizer_file(tokenizers: list[bytes], tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(tokenizers))
    if content.startswith(b"{") and data.draw(st.booleans()):
        content = json.dumps(data.draw(changed(json.loads(content)))).encode()
    else:
        content = data.draw(changed_bytes(content))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    error = refusal(DataError, lambda: load_tokenizer(path))
    assert error is None or str(path) in error


@settings(FEW, max_examples=max(FEW.max_examples // 4, 1))  # each takes a tenth of a second
@given(data=st.data())
def test_a_configuration(run: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = yaml.safe_load((run / "config.yaml").read_text())
    path = tmp_path / "config.yaml"
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed(original))), errors="replace")  # JSON is YAML
    else:
        path.write_bytes(data.draw(changed_bytes((run / "config.yaml").read_bytes())))
    refusal(ConfigError, lambda: compose.load(path, TrainConfig))


@FEW
@given(data=st.data())
def test_metrics_and_amendments(run: Path, tmp_path: Path, data: st.DataObject) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = json.dumps(data.draw(changed(json.loads(lines[at])))).encode() + b"\n"
        path.write_bytes(b"".join(lines))
    else:
        path.write_bytes(data.draw(changed_bytes(b"".join(lines))))
    assert next_attempt(path) >= 1
    error = refusal(DataError, lambda: ledger_of(read(path)))
    assert error is None or str(path) in error
    (tmp_path / AMENDMENTS).write_text(json.dumps(data.draw(changed([{"at_step": 100, "jump": 3}]))))
    error = refusal(ConfigError, lambda: read_amendments(tmp_path))
    assert error is None or "amendment" in error


def test_a_checkpoint_whose_file_is_a_link_or_a_pickle_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    secret = tmp_path / "secret"
    shutil.move(checkpoint / "rank-00000.bin", secret)
    (checkpoint / "rank-00000.bin").symlink_to(secret)
    with pytest.raises(CheckpointError, match="may not be links"):
        open_checkpoint(checkpoint)
    (checkpoint / "index.json").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(checkpoint)
