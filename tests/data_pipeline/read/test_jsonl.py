import gzip
import io
import json
import os
import random

import pytest
import zstandard
from read_whole import read_whole

from data_pipeline.read import jsonl


def write(path, data):
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def records(texts, newline="\n"):
    return "".join(json.dumps({"text": text}) + newline for text in texts).encode()


def read(path, partition_bytes=10**9, **settings):
    """Return {row: text} and {reason: [rows]}, whatever the pieces."""
    table, statistics = read_whole(path, partition_bytes, **settings)
    problems = {}
    for reason, examples in statistics.examples.items():
        problems[reason.removeprefix("read.")] = [each["row"] for each in examples]
    return dict(zip(table["row"].to_pylist(), table["text"].to_pylist(), strict=True)), problems


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonl.gz", "jsonl.zst"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    texts = ["one", "zwei\nLinien", "三", "\U0001f600 \u2028 four"]
    path = write(tmp_path / f"a.{suffix}", records(texts))
    assert read(path) == (dict(enumerate(texts)), {})


@pytest.mark.parametrize("trailing", [b"", b"\n"])
def test_any_cut_of_a_file_gives_the_same_rows(tmp_path, trailing):
    generator = random.Random(0)
    texts = ["x" * generator.randrange(60) + "." for _ in range(40)]
    data = records(texts).rstrip() + trailing
    path = write(tmp_path / "a.jsonl", data)
    for size in [*range(1, 40), 100, len(data) - 1, len(data), len(data) + 1]:
        assert read(path, size) == (dict(enumerate(texts)), {}), size


def test_the_pieces_of_one_long_line_do_not_each_read_the_rest_of_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", records(["first", "x" * 12_000_000, "last"]))
    taken = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            taken.append(super().readinto(buffer))
            return taken[-1]

    monkeypatch.setattr(jsonl, "open_file", lambda path: io.BufferedReader(Counted(path)))
    assert read(path, 600_000, max_line_bytes=50_000) == ({0: "first", 2: "last"}, {"line_too_long": [1]})
    assert sum(taken) < 3.5 * path.stat().st_size, "to count lines, to find the first of each piece, to read"


def test_a_bad_line_is_counted_with_its_row_and_the_next_one_is_read(tmp_path):
    lines = [
        b'{"text": "first"}',
        b"{broken",
        b'{"text": "\xff\xfe"}',
        b'{"other": 1}',
        b'{"text": null}',
        b'{"text": 5}',
        b'{"text": " "}',
        b'["text"]',
        b"",
        b'{"text": "' + b"y" * 500 + b'"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "s", "source": "' + b"z" * 150 + b'"}',
        b'{"text": "nul \\u0000 stays"}',
        b'{"text": "last"}\r',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    texts, problems = read(path, max_line_bytes=400)
    assert texts == {0: "first", 13: "nul \0 stays", 14: "last"}
    assert {reason: sorted(rows) for reason, rows in problems.items()} == {
        "invalid_json": [1],
        "invalid_utf8": [2],
        "missing_text": [3, 4],
        "text_is_not_a_string": [5],
        "empty_text": [6],
        "not_an_object": [7],
        "blank_line": [8],
        "line_too_long": [9, 11],
        "lone_surrogate": [10],
        "source_name_too_long": [12],
    }


def test_what_the_fast_parser_refuses_or_rounds_is_read_as_python_does(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "mark", "date": 1}',
        b'{"text": "not a number", "score": NaN, "date": 2}',
        b'{"text": "large", "date": 123456789012345678901234567890}',
        b'{"text": "nested", "date": [123456789012345678901234567890]}',
        b'{"text": "twice", "text": "second", "date": 1.50}',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    table, _ = read_whole(path, 10**9, date_column="date")
    assert table["text"].to_pylist() == ["mark", "not a number", "large", "nested", "second"]
    large = "123456789012345678901234567890"
    assert table["date"].to_pylist() == ["1", "2", large, f"[{large}]", "1.5"]


def test_deep_nesting_is_invalid_json(tmp_path):
    path = write(tmp_path / "a.jsonl", b"[" * 100_000 + b'\n{"text": "next"}\n')
    assert read(path) == ({1: "next"}, {"invalid_json": [0]})


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_breaks_off_keeps_what_was_before(tmp_path, suffix):
    generator = random.Random(1)
    texts = ["".join(generator.choices("abcdefghij \n", k=3000)) for _ in range(2000)]
    path = write(tmp_path / f"a.jsonl.{suffix}", records(texts))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, problems = read(path)
    assert 500 < len(found) < 1100
    assert found == dict(enumerate(texts[: len(found)]))
    assert problems == {"damaged_file": [len(found)]}


def test_a_small_file_that_breaks_off_keeps_what_was_before(tmp_path):
    generator = random.Random(1)
    texts = ["".join(generator.choices("abcdefghij \n", k=300)) for _ in range(40)]
    path = write(tmp_path / "a.jsonl.gz", records(texts))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, problems = read(path)
    assert 10 < len(found) < 30
    assert found == dict(enumerate(texts[: len(found)]))
    assert problems == {"damaged_file": [len(found)]}


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_flipped_byte_or_a_wrong_suffix_is_counted(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(records(["never compressed"]))
    assert read(path) == ({}, {"damaged_file": [0]})


def test_a_truncated_last_frame_is_noticed_at_every_length(tmp_path):
    first, second = zstandard.compress(records(["one"])), zstandard.compress(records(["two", "three"]))
    path = tmp_path / "a.jsonl.zst"
    for length in range(1, len(second)):
        path.write_bytes(first + second[:length])
        texts, problems = read(path)
        assert texts[0] == "one"
        assert list(problems) == ["damaged_file"], length
        assert set(texts.values()) <= {"one", "two", "three"}
    path.write_bytes(first + second)
    assert read(path) == ({0: "one", 1: "two", 2: "three"}, {})


def test_members_and_frames_behind_each_other_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(records(["one"])) + gzip.compress(records(["two"])))
    assert read(path) == ({0: "one", 1: "two"}, {})


def test_a_window_larger_than_allowed_is_not_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=24, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(records([os.urandom(1000).hex()])) + compressor.flush()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(data)
    assert list(read(path, max_zstd_window_bytes=2**23)[1]) == ["damaged_file"]
    assert len(read(path)[0]) == 1


def test_a_bomb_of_one_line_is_read_in_bounded_memory(tmp_path):
    resource = pytest.importorskip("resource")
    compressor = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(compressor.compress(b"x" * 2**20) for _ in range(400)) + compressor.flush()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(bomb + zstandard.compress(b"\n" + records(["after"])))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(path, max_line_bytes=2**20) == ({1: "after"}, {"line_too_long": [0]})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_byte_order_mark_is_not_part_of_the_first_record(tmp_path):
    assert read(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + records(["one"]))) == ({0: "one"}, {})


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_an_empty_file_holds_nothing(tmp_path, suffix):
    assert read(write(tmp_path / f"a.{suffix}", b"")) == ({}, {})
    (tmp_path / f"b.{suffix}").touch()
    assert read(tmp_path / f"b.{suffix}") == ({}, {})


def test_the_size_of_a_long_line_is_not_masked_as_a_phone_number(tmp_path):
    path = write(tmp_path / "a.jsonl", records(["a" * 1_200_000]))
    _, statistics = read_whole(path, max_line_bytes=2**20)
    [example] = statistics.examples["read.line_too_long"]
    assert example["text"] == "a line of 1,200,012 bytes"
