"""Object stores: a real S3 protocol against moto on loopback, and a store that fails on purpose."""

import gzip
import io
import itertools
import json

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from read_whole import read_whole

from data_pipeline.config import InputConfig
from data_pipeline.read import storage
from data_pipeline.read.plan import find
from llama_foundation.errors import ConfigError, DataError, RunError


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer("127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        yield client
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_every_format_is_read_from_s3_as_from_disk(bucket, tmp_path):
    texts = [f"text {number} " + "x" * 400 for number in range(600)]
    table = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), table, row_group_size=200)
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    warc = [page + text.encode() for text in texts]
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n"
    files = {
        "a.jsonl": lines(texts),
        "b.jsonl.gz": gzip.compress(lines(texts)),
        "c.jsonl.zst": zstandard.compress(lines(texts)),
        "d.parquet": table.getvalue(),
        "e.warc.gz": b"".join(gzip.compress(head % len(each) + each + b"\r\n\r\n", 1) for each in warc),
    }
    for name, data in files.items():
        bucket.put_object(Bucket="corpus", Key=f"formats/{name}", Body=data)
        (tmp_path / name).write_bytes(data)
        remote, _ = read_whole(f"s3://corpus/formats/{name}", 100_000)
        local, _ = read_whole(tmp_path / name, 100_000)
        columns = ["row", "text", "source"]
        assert remote.select(columns).equals(local.select(columns)), name
        assert remote["text"].to_pylist() == texts
        assert set(remote["file"].to_pylist()) == {f"s3://corpus/formats/{name}"}


def test_remote_globs_and_lists_are_expanded(bucket):
    for name in ("x/1.jsonl", "x/2.jsonl", "x/deep/3.jsonl", "x/other.jsonl.gz"):
        bucket.put_object(Bucket="corpus", Key=f"globs/{name}", Body=b"")
    found = find(InputConfig(paths=["s3://corpus/globs/**/*.jsonl"]))
    assert [file.path for file in found] == [f"s3://corpus/globs/x/{name}.jsonl" for name in ("1", "2", "deep/3")]
    assert all(file.modified > 0 for file in found)
    bucket.put_object(Bucket="corpus", Key="list.txt", Body=b"s3://corpus/globs/x/1.jsonl\n")
    assert len(find(InputConfig(list="s3://corpus/list.txt"))) == 1
    for missing in ("s3://corpus/globs/*.parquet", "s3://corpus/gone.jsonl"):
        with pytest.raises(DataError, match=f"no file matches {missing.replace('*', '.')}"):
            find(InputConfig(paths=[missing]))


class FlakyFileSystem(MemoryFileSystem):
    """Loses the connection for as many requests as `failures` says, and cuts one answer short."""

    protocol = "flaky"
    failures = 0
    short_answers = 0
    requests = 0

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("flaky://").lstrip("/")

    def cat_file(self, path, start=None, end=None, **options):
        FlakyFileSystem.requests += 1
        if FlakyFileSystem.failures > 0:
            FlakyFileSystem.failures -= 1
            raise ConnectionResetError("connection reset by peer")
        data = super().cat_file(path, start, end, **options)
        if FlakyFileSystem.short_answers > 0:
            FlakyFileSystem.short_answers -= 1
            return data[:-1]
        return data


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    pauses = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    FlakyFileSystem.failures = FlakyFileSystem.short_answers = FlakyFileSystem.requests = 0
    return pauses


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_connection_that_drops_is_taken_up_again_and_then_given_up(flaky, suffix):
    texts = [f"text {number}" for number in range(500)]
    data = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), data)
    body = {"jsonl": lines(texts), "jsonl.gz": gzip.compress(lines(texts)), "parquet": data.getvalue()}[suffix]
    path = f"flaky://a.{suffix}"
    FlakyFileSystem().pipe_file(f"/a.{suffix}", body)
    FlakyFileSystem.failures, FlakyFileSystem.short_answers = storage.ATTEMPTS - 2, 1
    assert read_whole(path)[0]["text"].to_pylist() == texts
    assert len(flaky) == storage.ATTEMPTS - 1
    assert all(later > earlier for earlier, later in itertools.pairwise(flaky))
    FlakyFileSystem.failures = 1000
    with pytest.raises(RunError, match=rf"flaky:///?a\.{suffix}.*failed {storage.ATTEMPTS} times.*connection reset"):
        read_whole(path)
    assert FlakyFileSystem.failures == 1000 - storage.ATTEMPTS


def test_the_bytes_of_a_remote_file_come_in_bounded_blocks(flaky):
    content = bytes(range(256)) * 100
    FlakyFileSystem().pipe_file("/b.bin", content)
    with storage.open_file("flaky://b.bin") as file:
        assert file.read(300) == content[:300]
        assert FlakyFileSystem.requests == 1
        file.seek(20_000)
        assert file.read(10) == content[20_000:20_010]
        file.seek(-5, 2)
        assert file.read() == content[-5:]
        assert file.read() == b""


def test_an_unknown_store_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"nowhere://a\.jsonl"):
        find(InputConfig(paths=["nowhere://a.jsonl"]))
