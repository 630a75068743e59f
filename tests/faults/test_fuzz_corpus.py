"""The files of the data pipeline: what it reads, its work folder, and what it leaves beside the token ids."""

import gzip
import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import what_if
from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import NOTE
from data_pipeline.config import InputConfig
from data_pipeline.decontaminate.benchmarks import read_examples
from data_pipeline.document import SCHEMA, Documents
from data_pipeline.engines.array import FAILED, _failures, _stop_if_failed
from data_pipeline.engines.leases import read_lease
from data_pipeline.engines.work import Commit, Task, load_commit, perform_task, total_statistics
from data_pipeline.filters.lexicon import entries_of
from data_pipeline.filters.url_list import _load as load_lists
from data_pipeline.read import plan
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.shards.manifest import MANIFEST, publish_sealed, read_sealed
from data_pipeline.shards.pack_writer import write_packs
from data_pipeline.shards.packs import PackSet
from data_pipeline.shards.reader import ShardSet
from data_pipeline.status import look
from data_pipeline.verify import work_problems
from data_pipeline.workspace import SETTINGS, WORK, finished
from llama_foundation.errors import ConfigError, DataError, UserError
from llama_foundation.files import BLOCK_BYTES, checksum
from llama_train.prove.harness import make_shards
from tests.data_pipeline.read.read_whole import read_whole
from tests.faults.fuzzing import FEW, bounded_memory, changed, changed_bytes, refusal

__all__ = ["bounded_memory"]

pytestmark = pytest.mark.usefixtures("bounded_memory")

LENGTH = 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one source, with packs."""
    root = tmp_path_factory.mktemp("fuzz-corpus")
    make_shards(root, 101, 3_000)
    directory = next((root / "train").rglob(MANIFEST)).parent
    write_packs(ShardSet(directory), LENGTH)
    return directory


def sealed_again(manifest: Path, name: str, content: bytes) -> None:
    """Put `content` in the place of a file, and have the manifest say that it is what was written."""
    value = read_sealed(manifest)

    def mend(part: Any) -> None:
        if isinstance(part, dict) and part.get("name") == name:
            blocks = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
            part |= {"bytes": len(content), "blocks": [checksum(block) for block in blocks]}
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            mend(inner)

    mend(value)
    publish_sealed(manifest, value)
    (manifest.parent / name).write_bytes(content)


@FEW
@given(data=st.data())
def test_a_pack_index_and_its_manifest(shards: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(shards, tmp_path / "web", dirs_exist_ok=True)
    packs = tmp_path / "web" / f"packs-{LENGTH}"
    if data.draw(st.booleans()):
        content = (packs / "shard-00000.packs").read_bytes()
        if data.draw(st.booleans()):
            content = data.draw(changed_bytes(content))
        else:  # one number of the header or of the tables
            place = data.draw(st.integers(1, (len(content) - 8) // 8)) * 8
            number = data.draw(st.sampled_from([0, 1, 2**31, 2**62, 2**63 - 1, 2**64 - 1]))
            content = content[:place] + struct.pack("<Q", number) + content[place + 8 :]
        sealed_again(packs / MANIFEST, "shard-00000.packs", content)
    else:
        value = data.draw(changed(read_sealed(packs / MANIFEST)))
        try:
            publish_sealed(packs / MANIFEST, value)
        except (TypeError, ValueError):  # what JSON cannot hold
            return

    def read_it() -> None:
        source = ShardSet(tmp_path / "web")
        found = PackSet(source, LENGTH)
        found.check()
        for number in range(found.count):
            shard, pieces = found.pieces(number)
            for start, tokens in pieces:
                source.read(shard, start, tokens)

    error = refusal(DataError, read_it)
    assert error is None or str(tmp_path) in error


@FEW
@given(data=st.data())
def test_provenance(shards: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(shards, tmp_path / "web", dirs_exist_ok=True)
    name = "shard-00000.provenance.parquet"
    content = data.draw(changed_bytes((shards / name).read_bytes()))
    sealed_again(tmp_path / "web" / MANIFEST, name, content or b"x")

    def read_it() -> None:
        source = ShardSet(tmp_path / "web")
        for document in range(source.documents):
            source.provenance(0, document)

    error = refusal(DataError, read_it)
    assert error is None or str(tmp_path) in error


ROWS = [{"text": f"text {n}", "url": f"http://a/{n}", "date": "2024", "other": [n, None]} for n in range(20)]


def archived(page: bytes) -> bytes:
    """A page as a web archive holds it."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-05-18T01:58:10Z\r\nWARC-Target-URI: http://a/\r\n"
    head += b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n" % len(http)
    return head + http + b"\r\n\r\n"


def inputs() -> dict[str, bytes]:
    """Files of every format, by name."""
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    table, sinks = pa.Table.from_pylist(ROWS), [io.BytesIO(), io.BytesIO()]
    pq.write_table(table, sinks[0], row_group_size=7)
    with pa.ipc.new_stream(sinks[1], table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    records = [archived(f"<p>page {number}</p>".encode()) for number in range(5)]
    return {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines[:300], mtime=0) + gzip.compress(lines[300:], mtime=0),
        "a.jsonl.zst": zstandard.compress(lines),
        "a.parquet": sinks[0].getvalue(),
        "a.arrow": sinks[1].getvalue(),
        "a.warc": b"".join(records),
        "a.warc.gz": b"".join(gzip.compress(each, mtime=0) for each in records),
    }


INPUTS = inputs()


@FEW
@given(data=st.data())
def test_an_input_file(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(INPUTS)))
    path = tmp_path / name
    if name == "a.jsonl" and data.draw(st.booleans()):
        rows = data.draw(changed(ROWS))
        content = b"".join(json.dumps(row).encode() + b"\n" for row in (rows if isinstance(rows, list) else [rows]))
    else:
        content = data.draw(changed_bytes(INPUTS[name]))
    path.write_bytes(content)
    partition = data.draw(st.sampled_from([100, 10**9]))
    found = []
    error = refusal(DataError, lambda: found.append(read_whole(path, partition)))
    assert error is None or name in error
    for table, _ in found:  # what is read can go on through the pipeline
        write_documents(tmp_path / "blocks", Documents(table.combine_chunks().to_batches()[0])) if len(table) else []


@FEW
@given(data=st.data())
def test_a_saved_data_set(tmp_path: Path, data: st.DataObject) -> None:
    folder, secret = tmp_path / "set", tmp_path / "secret.arrow"
    folder.mkdir(exist_ok=True)
    (folder / "data.arrow").write_bytes(INPUTS["a.arrow"])
    secret.write_bytes(INPUTS["a.arrow"])
    name = data.draw(st.sampled_from(["data.arrow", "../secret.arrow", str(secret), "../set/../secret.arrow", "."]))
    state = data.draw(changed({"_data_files": [{"filename": name}], "_split": None}))
    (folder / "state.json").write_text(json.dumps(state))
    found: list = []
    error = refusal(DataError, lambda: found.extend(plan.find(InputConfig(paths=[str(folder)]))))
    assert error is None or str(tmp_path) in error
    assert all(Path(file.path).parent == folder for file in found), "a file outside of the data set"


WORDS = "en\tword\nen\tother words\t2.5\nde\tWort\n"


@FEW
@given(data=st.data())
def test_lists_and_benchmarks(tmp_path: Path, data: st.DataObject) -> None:
    content = {"words.tsv": WORDS, "domains": "a.example\nb.example\n", "b.jsonl": '{"text": "a b c", "x": [1, {}]}\n'}
    name = data.draw(st.sampled_from(sorted(content)))
    if data.draw(st.booleans()):
        path, whole = tmp_path / f"{name}.gz", gzip.compress(content[name].encode(), mtime=0)
    else:
        path, whole = tmp_path / name, content[name].encode()
    path.write_bytes(data.draw(changed_bytes(whole)))
    readers = {
        "words.tsv": lambda: entries_of(path),
        "domains": lambda: load_lists((path,), (path,), ()),
        "b.jsonl": lambda: read_examples("b", path, ["text", "x"]),
    }
    error = refusal(DataError, readers[name])
    assert error is None or str(path) in error


def some_work(folder: Path) -> Task:
    """One finished task."""
    row = {name: b"x" * 16 if name == "record_id" else None for name in SCHEMA.names}
    batch = pa.RecordBatch.from_pylist(
        [row | {"text": "a text", "source": "web", "file": "f", "row": 0, "published": False}], SCHEMA
    )
    statistics = StageStatistics("read", seen={"web": {"en": [1, 6]}}, hosts={"kept": [[1, "a"]]})
    task = Task("000000", "the task", None)

    def do(folder: Path, task: Task) -> Commit:
        blocks = write_documents(folder / f"{task.name}.arrow", Documents(batch))
        return Commit(blocks, [statistics], {"rows": 1})

    perform_task(do, folder, task)
    return task


@FEW
@given(data=st.data())
def test_the_work_of_a_task(tmp_path: Path, data: st.DataObject) -> None:
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "read-0").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"x" * 10_000)
    task = some_work(work / "read-0")
    path = work / "read-0" / "000000.json"
    value = json.loads(path.read_text())
    block = value["blocks"][0]
    content = (work / "read-0" / block["path"]).read_bytes()
    match data.draw(st.integers(0, 3)):
        case 0:
            path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
        case 1:
            path.write_text(json.dumps(data.draw(changed(value))))
        case 2:  # a block elsewhere, or as large as it likes to say
            block |= data.draw(
                st.sampled_from(
                    [{"path": "../../secret"}, {"path": str(tmp_path / "secret")}, {"length": 2**40}, {"offset": -1}]
                )
            )
            path.write_text(json.dumps(value))
        case _:  # other bytes, and the checksum is theirs
            content = data.draw(changed_bytes(content))
            (work / "read-0" / block["path"]).write_bytes(content)
            block |= {"checksum": checksum(content), "length": len(content)}
            path.write_text(json.dumps(value))
    commit = load_commit(work / "read-0", task)
    if commit is not None:
        assert all(Path(block.path).parent == work / "read-0" for block in commit.blocks)
        for block in commit.blocks:
            error = refusal(DataError, lambda block=block: load_documents(block))
            assert error is None or str(work) in error
        total_statistics([commit, commit], [each.stage for each in commit.statistics])
    assert all(str(work) in problem for problem in work_problems(work))


@FEW
@given(data=st.data())
def test_what_workers_tell_each_other(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / WORK / "read-0"
    folder.mkdir(parents=True, exist_ok=True)
    described = {"settings": {"pipeline.stages": ["c4"]}, "versions": {}, "inputs": {}}
    files = {
        folder / "000000.lease": {"host": "h", "process": 1},
        folder / f"000000{FAILED}": {"attempt": "1", "kind": "DataError", "message": "m", "label": "l"},
        folder / NOTE: {"name": "read", "place": 1, "tasks": 3, "settings": "x"},
        tmp_path / WORK / SETTINGS: described,
        tmp_path / "stats.json": described | {"stages": [StageStatistics("read").to_json()]},
    }
    for path, value in files.items():
        path.write_text(json.dumps(value))
    (tmp_path / "shards.json").write_text("{}")
    path = data.draw(st.sampled_from(list(files)))
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(changed(files[path]))))
    else:
        path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
    holder, _ = read_lease(folder / "000000.lease")
    if holder is not None:
        holder.is_dead()
    refusal(UserError, lambda: _stop_if_failed(folder, set()))
    assert set(_failures(folder)) <= set(map(str, _failures(folder)))
    error = refusal(ConfigError, lambda: look(tmp_path))
    assert error is None or str(tmp_path) in error
    finished(tmp_path, described)


@FEW
@given(data=st.data())
def test_the_sample_of_what_if(tmp_path: Path, data: st.DataObject) -> None:
    table = pa.table({"source": ["web"], "bytes": [3], "c4.words": pa.array([0.5], pa.float32())})
    about = {"sample_fraction": 0.5, "versions": {"c4": 1}, "settings": {"c4.min": 3}}
    if data.draw(st.booleans()):
        about = data.draw(changed(about))
    pq.write_table(table.replace_schema_metadata({what_if.NAME: json.dumps(about)}), tmp_path / what_if.FILE)
    path = tmp_path / what_if.FILE
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
    (tmp_path / "stats.json").write_text(json.dumps(data.draw(changed({"stages": [{"stage": "c4"}]}))))
    for reader in (what_if._load, what_if._statistics):
        error = refusal(DataError, lambda reader=reader: reader(tmp_path))
        assert error is None or str(tmp_path) in error


def test_what_is_not_changed_is_read(shards: Path, tmp_path: Path) -> None:
    assert PackSet(ShardSet(shards), LENGTH).count > 10
    assert ShardSet(shards).provenance(0, 0)["source"]
    for name, content in INPUTS.items():
        (tmp_path / name).write_bytes(content)
        assert len(read_whole(tmp_path / name)[0]) in (5, 20), name
    folder = tmp_path / "work" / "read-0"
    commit = load_commit(folder, some_work(folder))
    assert commit is not None and load_documents(commit.blocks[0]).batch["text"].to_pylist() == ["a text"]
    assert work_problems(folder.parent) == []
