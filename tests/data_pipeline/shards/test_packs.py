"""The pack index written and read back, and every way of damaging it."""

import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards import pack_writer, writer
from data_pipeline.shards.manifest import publish_sealed, read_sealed
from data_pipeline.shards.pack_writer import write_packs
from data_pipeline.shards.packs import PackSet
from data_pipeline.shards.reader import ShardSet
from data_pipeline.shards.verify import verify
from data_pipeline.shards.writer import ShardSetWriter
from llama_foundation.errors import DataError

LENGTHS = np.random.default_rng(0).integers(2, 40, 60).tolist()


def write_shards(directory: Path, lengths, max_shard_bytes=1000) -> ShardSet:
    """Token ids count up through the whole source."""
    token = 0
    with ShardSetWriter(directory, "f" * 64, 60000, max_shard_bytes) as shards:
        for row, length in enumerate(lengths):
            origin = {
                "record_id": f"{row:032x}",
                "source": "web",
                "file": "a",
                "row": row,
                "url": None,
                "language": None,
            }
            shards.add(np.arange(token, token + length), origin | {"first_words": ""})
            token += length
    return ShardSet(directory)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """60 documents in 3 shards, in files of several checksummed blocks."""
    monkeypatch.setattr(writer, "BLOCK_BYTES", 64)
    monkeypatch.setattr(pack_writer, "BLOCK_BYTES", 64)
    return write_shards(tmp_path / "shards" / "train" / "web", LENGTHS)


def tokens_of(shards, packs, pack):
    shard, pieces = packs.pieces(pack)
    return np.concatenate([shards.read(shard, start, tokens) for start, tokens in pieces]).tolist()


@pytest.mark.parametrize("block_documents", [1, 7, 1000])
def test_every_token_of_the_source_is_in_one_pack(shards, block_documents):
    packs = write_packs(shards, 32, block_documents)
    assert len(shards.shard_tokens) == 3
    rows = [tokens_of(shards, packs, pack) for pack in range(packs.count)]
    assert max(len(row) for row in rows) <= 32
    assert sorted(itertools.chain(*rows)) == list(range(sum(LENGTHS)))
    statistics = packs.manifest.statistics
    assert (statistics.documents, statistics.tokens, statistics.packs) == (60, sum(LENGTHS), packs.count)
    assert statistics.padding_tokens == packs.count * 32 - sum(LENGTHS)
    assert statistics.windows == sum((tokens - 1) // 32 for tokens in shards.shard_tokens)


def test_blocks_hold_the_same_documents_for_every_length(shards):
    borders = []
    for length in (8, 32):
        packs = write_packs(shards, length, block_documents=7, block_tokens=100)
        of_block = np.split(np.arange(packs.count), packs.block_ends[:-1])
        borders.append([sorted(token for pack in b for token in tokens_of(shards, packs, pack)) for b in of_block])
    assert borders[0] == borders[1]
    assert len(borders[0]) > 12
    assert max(map(len, borders[0])) <= 100


def test_a_document_longer_than_a_block_is_a_block(tmp_path):
    shards = write_shards(tmp_path / "train" / "web", [3, 50, 4, 5], max_shard_bytes=10_000)
    packs = write_packs(shards, 8, block_tokens=10)
    assert packs.manifest.files[0].blocks == (1, 7, 2)


def test_the_file_is_what_the_format_says_byte_by_byte(tmp_path):
    shards = write_shards(tmp_path / "train" / "web", [3, 10, 5])
    packs = write_packs(shards, 8)
    # Pieces 0-3, 3-11, 11-13, 13-18: the second fills a pack, 5 and 3 fill another, 2 is left.
    expected = struct.pack("<8sQQQQ", b"PACKIDX\0", 1, 8, 3, 4)
    expected += struct.pack("<3q", 1, 3, 4) + struct.pack("<4q", 3, 0, 13, 11) + struct.pack("<4i", 8, 3, 5, 2)
    assert (packs.directory / "shard-00000.packs").read_bytes() == expected
    assert packs.directory == tmp_path / "train" / "web" / "packs-8"
    assert [packs.pieces(pack) for pack in range(3)] == [(0, ((3, 8),)), (0, ((0, 3), (13, 5))), (0, ((11, 2),))]


def test_the_same_shards_give_the_same_bytes(shards, tmp_path):
    first = write_packs(shards, 32)
    written = {file.name: file.read_bytes() for file in first.directory.iterdir()}
    shutil.rmtree(first.directory)
    second = write_packs(shards, 32)
    assert {file.name: file.read_bytes() for file in second.directory.iterdir()} == written


def test_an_index_that_is_there_is_kept_and_a_damaged_or_different_one_replaced(shards):
    first = write_packs(shards, 32)
    file = first.directory / "shard-00000.packs"
    before = file.stat().st_ino
    write_packs(shards, 32)
    assert file.stat().st_ino == before
    write_packs(shards, 32, block_documents=5)
    assert file.stat().st_ino != before
    flip(file, 50)
    assert write_packs(shards, 32, block_documents=5).pieces(0)


def flip(path: Path, offset: int):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_refused_by_name_wherever_it_is(shards):
    packs = write_packs(shards, 32)
    for name in ("manifest.json", "shard-00001.packs"):
        file = packs.directory / name
        sound = file.read_bytes()
        for offset in range(0, len(sound), 37):
            flip(file, offset)
            with pytest.raises(DataError, match=f"packs-32/{name}"):
                PackSet(shards, 32).check()
            file.write_bytes(sound)
    PackSet(shards, 32).check()


@pytest.mark.parametrize(("change", "complaint"), [(b"", "truncated"), (b"xx", "too long")])
def test_a_file_of_the_wrong_size_is_refused_by_name(shards, change, complaint):
    file = write_packs(shards, 32).directory / "shard-00002.packs"
    file.write_bytes(file.read_bytes() + change if change else file.read_bytes()[:-4])
    with pytest.raises(DataError, match=rf"shard-00002.packs: .* {complaint}"):
        PackSet(shards, 32)


def test_a_missing_index_is_refused_with_the_command_that_makes_it(shards):
    with pytest.raises(DataError, match=r"packs-16/.*llama-pack shards=.*/shards sequence_length=16"):
        PackSet(shards, 16)


def test_an_index_of_other_shards_is_refused(shards, tmp_path):
    write_packs(shards, 32)
    other = write_shards(tmp_path / "other", [*LENGTHS[:-1], 3])
    shutil.copytree(shards.directory / "packs-32", other.directory / "packs-32")
    with pytest.raises(DataError, match="made for other shards"):
        PackSet(other, 32)


def resealed(path: Path, change):
    value = read_sealed(path)
    change(value)
    path.unlink()
    publish_sealed(path, value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda value: value.update(sequence_length=31), "sequences of 31 tokens"),
        (lambda value: value["files"].pop(), "has 2 files"),
        (lambda value: value["files"][0].update(packs=-1), "packs is -1"),
        (lambda value: value["files"][0]["blocks"].append(1), "its blocks have"),
        (lambda value: value["files"][0]["file"].update(name="../x.packs"), "not a plain name"),
        (lambda value: value["files"][0]["file"]["blocks"].pop(), "not as many checksums"),
        (lambda value: value.pop("statistics"), "is not a manifest"),
        (lambda value: value["files"][0].update(pieces=1), "its manifest says"),
    ],
)
def test_an_impossible_manifest_is_refused_by_name(shards, change, complaint):
    packs = write_packs(shards, 32)
    resealed(packs.directory / "manifest.json", change)
    with pytest.raises(DataError, match=rf"packs-32/.*{complaint}"):
        PackSet(shards, 32).check()


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (40, struct.pack("<q", 0), "do not follow one another"),
        (40, struct.pack("<q", 2), "more than 8"),
        (64, struct.pack("<q", 11), "outside its shard"),
        (96, struct.pack("<i", 0), "outside its shard"),
        (96, struct.pack("<i", 7), "have 17 tokens, but the shard has 18"),
        (8, struct.pack("<Q", 2), "version 2"),
        (0, b"OTHERIDX", "not a pack index"),
    ],
)
def test_an_index_that_contradicts_its_shard_is_refused_by_name(tmp_path, offset, value, complaint):
    packs = write_packs(write_shards(tmp_path / "train" / "web", [3, 10, 5]), 8)
    file = packs.directory / "shard-00000.packs"
    data = bytearray(file.read_bytes())
    data[offset : offset + len(value)] = value
    file.write_bytes(data)
    resealed(
        packs.directory / "manifest.json",
        lambda manifest: manifest["files"][0]["file"].update(blocks=[writer.checksum(bytes(data))]),
    )
    with pytest.raises(DataError, match=rf"shard-00000.packs: .*{complaint}"):
        PackSet(ShardSet(packs.directory.parent), 8).check()


def test_nothing_appears_when_writing_fails(shards, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("stop")

    monkeypatch.setattr(pack_writer, "publish_directory", fail)
    with pytest.raises(RuntimeError, match="stop"):
        write_packs(shards, 32)
    assert not [path for path in shards.directory.iterdir() if "packs" in path.name]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    shards = write_shards(tmp_path / "train" / "web", [5] * 4000, max_shard_bytes=1 << 20)
    program = f"""
import resource
from data_pipeline.shards.pack_writer import write_packs
from data_pipeline.shards.reader import ShardSet
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write_packs(ShardSet({str(shards.directory)!r}), 8)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ)
    assert "DataError" in done.stderr and "cannot be written: File too large" in done.stderr
    assert not [path for path in shards.directory.iterdir() if "packs" in path.name]


def test_verify_looks_at_the_packs_too(shards):
    packs = write_packs(shards, 32)
    write_packs(shards, 8)
    assert verify(shards.directory) == []
    flip(packs.directory / "shard-00001.packs", 45)
    [problem] = verify(shards.directory)
    assert "packs-32/shard-00001.packs" in problem


def test_statistics_stay_in_the_manifest(shards):
    packs = write_packs(shards, 32)
    stored = json.loads((packs.directory / "manifest.json").read_text())["statistics"]
    assert stored["cut_documents"] == sum(length > 32 for length in LENGTHS)
    assert stored["concatenate_cut_documents"] > stored["cut_documents"]
