"""A run of `llama-data` that reads from an object store through a line that is cut."""

import contextlib
import json
import random
import socket
import threading

import boto3
import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from data_pipeline.config import DataPipelineConfig
from data_pipeline.read import storage
from data_pipeline.run import run
from llama_foundation.compose import compose
from llama_foundation.errors import RunError


class CutLine:
    """A TCP proxy on loopback. Each answer longer than `whole_bytes` is cut there, `cuts` times; closed: all are."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.cuts, self.whole_bytes, self.closed, self.made = target, 0, 20_000, False, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._socket.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self.target) as server:
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            passed = 0
            while not self.closed and (data := server.recv(4096)):
                passed += len(data)
                if self.cuts and passed > self.whole_bytes:
                    self.cuts -= 1
                    self.made += 1
                    break
                client.sendall(data)
            for each in (client, server):
                each.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the other thread

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)

    def stop(self) -> None:
        self._socket.close()


@pytest.fixture
def line(monkeypatch):
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    line = CutLine(server.get_host_and_port())
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}",
        "AWS_MAX_ATTEMPTS": "1",  # of the client below ours, so that the tries of ours are what is seen
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield line
    line.stop()
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_run_outlives_cuts_and_goes_on_after_a_store_that_was_gone(line, tmp_path, capsys):
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnop", k=7)) for _ in range(300)]
    for name in ("a", "b"):
        rows = [json.dumps({"text": " ".join(generator.choices(words, k=40))}) for _ in range(300)]
        client.put_object(Bucket="corpus", Key=f"{name}.jsonl", Body="\n".join(rows).encode())

    def configured(output: str) -> DataPipelineConfig:
        plain = ["input.paths=[s3://corpus/*.jsonl]", f"output={tmp_path / output}", "workers=1"]
        plain += ["pipeline.stages=[exact_dedup]", "tokenizer.train.vocabulary_size=400"]
        return compose("data", DataPipelineConfig, plain)

    assert run(configured("whole")) == 0
    line.cuts = 3
    assert run(configured("cut")) == 0
    assert line.made == 3
    expected = (tmp_path / "whole" / "shards.json").read_bytes()
    assert (tmp_path / "cut" / "shards.json").read_bytes() == expected

    line.cuts, line.made = 1000, 0
    with pytest.raises(RunError, match=r"s3://corpus/.\.jsonl.*failed 6 times.*run the same command again"):
        run(configured("gone"))
    assert line.made >= storage.ATTEMPTS
    line.closed = True
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # the next process knows no listing
    with pytest.raises(RunError, match=r"s3://corpus/\*\.jsonl.*failed 6 times"):
        run(configured("gone"))
    line.cuts, line.closed = 0, False
    capsys.readouterr()
    assert run(configured("gone")) == 0
    assert (tmp_path / "gone" / "shards.json").read_bytes() == expected
