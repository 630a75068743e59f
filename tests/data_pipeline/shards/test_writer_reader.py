"""Shards written and read back, and every way of damaging them."""

import itertools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.shards import writer
from data_pipeline.shards.manifest import publish_sealed, read_sealed
from data_pipeline.shards.reader import ShardSet, open_root
from data_pipeline.shards.verify import verify
from data_pipeline.shards.writer import ShardSetWriter, write_root
from llama_foundation.errors import DataError

BLOCK = 64  # bytes, so that small files have many blocks
TOKENIZER = {
    "file": "tokenizer/tokenizer.model",
    "fingerprint": "f" * 64,
    "vocabulary_size": 300,
    "bos_id": 1,
    "eos_id": 2,
}


def documents(count=40, seed=0, vocabulary_size=300):
    random = np.random.default_rng(seed)
    return [random.integers(3, vocabulary_size, random.integers(1, 30)) for _ in range(count)]


def origin(row):
    return {
        "record_id": f"{row:032x}",
        "source": "web",
        "file": "a.jsonl",
        "row": row,
        "url": None if row % 2 else f"https://example.org/{row}",
        "language": None if row % 3 else "de",
        "first_words": f"words of document {row}",
    }


def write_set(directory: Path, ids, vocabulary_size=300, max_shard_bytes=400):
    with ShardSetWriter(directory, TOKENIZER["fingerprint"], vocabulary_size, max_shard_bytes) as shards:
        for row, tokens in enumerate(ids):
            shards.add(tokens, origin(row))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(writer, "BLOCK_BYTES", BLOCK)


@pytest.fixture
def root(tmp_path):
    """A root with the sources train/web, train/books and validation/web."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"a tokenizer")
    write_set(tmp_path / "train" / "web", documents(seed=0))
    write_set(tmp_path / "train" / "books", documents(seed=1))
    write_set(tmp_path / "validation" / "web", documents(5, seed=2))
    write_root(tmp_path, TOKENIZER, {"train": ["web", "books"], "validation": ["web"]})
    return tmp_path


def read_everything(shards: ShardSet):
    for shard, tokens in enumerate(shards.shard_tokens):
        shards.read(shard, 0, tokens)
        shards.document_starts(shard)
        shards.provenance(shard, 0)


def flip(path: Path, offset: int):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_documents_come_back_in_order_with_their_provenance(tmp_path):
    ids = documents()
    write_set(tmp_path / "web", ids)
    shards = ShardSet(tmp_path / "web")
    assert shards.documents == len(ids)
    assert shards.tokens == sum(len(tokens) for tokens in ids)
    assert len(shards.shard_tokens) > 2
    row = 0
    for shard, tokens in enumerate(shards.shard_tokens):
        starts = shards.document_starts(shard)
        assert starts.dtype == np.int64
        assert starts[-1] == tokens
        for document, (start, stop) in enumerate(itertools.pairwise(starts)):
            assert shards.read(shard, int(start), int(stop - start)).tolist() == ids[row].tolist()
            assert shards.provenance(shard, document) == origin(row)
            row += 1
    assert row == len(ids)


def test_shards_stay_below_their_largest_size_unless_a_document_is_longer(tmp_path):
    ids = [np.full(length, 7) for length in (100, 90, 20, 500, 10)]
    write_set(tmp_path / "web", ids, max_shard_bytes=400)
    assert ShardSet(tmp_path / "web").shard_tokens == [190, 20, 500, 10]


def test_the_files_are_what_the_format_says_byte_by_byte(tmp_path):
    write_set(tmp_path / "web", [np.array([1, 260, 2]), np.array([1, 2])])
    assert (tmp_path / "web" / "shard-00000.bin").read_bytes() == struct.pack("<5H", 1, 260, 2, 1, 2)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i2q3q", 3, 2, 0, 6, 0, 1, 2)
    assert (tmp_path / "web" / "shard-00000.idx").read_bytes() == expected
    provenance = pq.read_table(tmp_path / "web" / "shard-00000.provenance.parquet")
    assert provenance.to_pylist() == [origin(0), origin(1)]


def test_a_large_vocabulary_is_stored_as_int32(tmp_path):
    write_set(tmp_path / "web", [np.array([1, 128000, 2])], vocabulary_size=128256)
    assert (tmp_path / "web" / "shard-00000.bin").read_bytes() == struct.pack("<3i", 1, 128000, 2)
    assert ShardSet(tmp_path / "web").read(0, 0, 3).tolist() == [1, 128000, 2]


def test_a_set_without_documents_has_no_shards(tmp_path):
    write_set(tmp_path / "web", [])
    assert ShardSet(tmp_path / "web").shard_tokens == []


def test_provenance_is_found_in_every_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_ROW_GROUP", 4)
    write_set(tmp_path / "web", documents(11), max_shard_bytes=1 << 20)
    shards = ShardSet(tmp_path / "web")
    assert [shards.provenance(0, document)["row"] for document in range(11)] == list(range(11))


def test_reading_copies_nothing(tmp_path):
    write_set(tmp_path / "web", documents())
    tokens = ShardSet(tmp_path / "web").read(0, 0, 8)
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable


def test_document_starts_within_a_window_agree_with_the_whole_list(tmp_path):
    write_set(tmp_path / "web", documents())
    shards = ShardSet(tmp_path / "web")
    starts = shards.document_starts(0)
    for start in range(shards.shard_tokens[0] - 20):
        inside = starts[:-1][(starts[:-1] >= start) & (starts[:-1] < start + 20)] - start
        assert shards.document_starts_within(0, start, 20).tolist() == inside.tolist()
        owners = np.searchsorted(starts, np.arange(start, start + 20), side="right") - 1
        assert list(shards.documents_within(0, start, 20)) == sorted(set(owners.tolist()))


def test_nothing_appears_when_writing_fails(tmp_path):
    def interrupted():
        yield np.array([1, 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "train" / "web", interrupted())
    assert list((tmp_path / "train").iterdir()) == []


def test_nothing_appears_before_the_end(tmp_path):
    with ShardSetWriter(tmp_path / "web", "f", 300) as shards:
        shards.add(np.array([1, 2]), origin(0))
        assert not (tmp_path / "web").exists()
    assert (tmp_path / "web").exists()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    program = f"""
import resource, signal, sys
import numpy as np
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from data_pipeline.shards.writer import ShardSetWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
row = dict(record_id="0", source="s", file="f", row=0, url=None, language=None, first_words="w")
with ShardSetWriter(Path({str(tmp_path / "web")!r}), "f", 300) as shards:
    shards.add(np.ones(2000, dtype=np.int64), row)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "DataError" in done.stderr
    assert "shard-00000.bin: cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_touched(tmp_path):
    write_set(tmp_path / "web", documents(3))
    before = sorted(path.read_bytes() for path in (tmp_path / "web").iterdir())
    with pytest.raises(DataError, match="web: already exists"):
        write_set(tmp_path / "web", documents(4))
    assert sorted(path.read_bytes() for path in (tmp_path / "web").iterdir()) == before


@pytest.mark.parametrize("token", [-1, 300])
def test_an_id_outside_the_vocabulary_is_refused_with_its_document(tmp_path, token):
    with pytest.raises(DataError, match=rf"a.jsonl row 0: token id {token} is outside the vocabulary of 300"):
        write_set(tmp_path / "web", [np.array([1, token, 2])])
    assert not (tmp_path / "web").exists()


def test_an_empty_document_is_refused(tmp_path):
    with pytest.raises(DataError, match="0 tokens"):
        write_set(tmp_path / "web", [np.array([], dtype=np.int64)])


def test_the_root_names_sources_splits_and_tokenizer(root):
    opened = open_root(root)
    assert opened.sources("train") == ["books", "web"]
    assert opened.sources("validation") == ["web"]
    assert opened.sources("test") == []
    assert opened.tokenizer.vocabulary_size == 300
    assert (opened.tokenizer.bos_id, opened.tokenizer.eos_id) == (1, 2)
    assert opened.tokenizer_path.read_bytes() == b"a tokenizer"
    assert opened.open("train", "books").documents == 40


def test_an_unknown_source_names_the_closest(root):
    with pytest.raises(DataError, match="did you mean 'books'"):
        open_root(root).open("train", "book")


def test_the_data_fingerprint_changes_with_the_data_and_with_nothing_else(root, tmp_path_factory):
    first = open_root(root).fingerprint
    assert open_root(root).fingerprint == first
    other = tmp_path_factory.mktemp("other")
    (other / "tokenizer").mkdir()
    (other / "tokenizer" / "tokenizer.model").write_bytes(b"a tokenizer")
    write_set(other / "train" / "web", documents(seed=0))
    write_set(other / "train" / "books", documents(seed=1))
    write_set(other / "validation" / "web", documents(5, seed=2))
    write_root(other, TOKENIZER, {"train": ["books", "web"], "validation": ["web"]})
    assert open_root(other).fingerprint == first
    changed = tmp_path_factory.mktemp("changed")
    (changed / "tokenizer").mkdir()
    (changed / "tokenizer" / "tokenizer.model").write_bytes(b"a tokenizer")
    ids = documents(seed=0)
    ids[17][0] ^= 1
    write_set(changed / "train" / "web", ids)
    write_set(changed / "train" / "books", documents(seed=1))
    write_set(changed / "validation" / "web", documents(5, seed=2))
    write_root(changed, TOKENIZER, {"train": ["web", "books"], "validation": ["web"]})
    assert open_root(changed).fingerprint != first


@pytest.mark.parametrize("extension", ["bin", "idx", "provenance.parquet"])
def test_a_missing_file_is_refused_by_name(root, extension):
    (root / "train" / "web" / f"shard-00001.{extension}").unlink()
    with pytest.raises(DataError, match=rf"shard-00001\.{extension}: No such file"):
        open_root(root).open("train", "web")


@pytest.mark.parametrize("extension", ["bin", "idx", "provenance.parquet"])
def test_a_truncated_file_is_refused_by_name(root, extension):
    path = root / "train" / "web" / f"shard-00001.{extension}"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"shard-00001\.{extension}: .*truncated"):
        open_root(root).open("train", "web")


@pytest.mark.parametrize("extension", ["bin", "idx", "provenance.parquet"])
def test_a_flipped_bit_is_refused_by_name_wherever_it_is(root, extension):
    path = root / "train" / "web" / f"shard-00001.{extension}"
    original = path.read_bytes()
    for offset in range(0, len(original), 37):
        flip(path, offset)
        with pytest.raises(DataError, match=rf"shard-00001\.{extension}: bytes .* do not match their checksum"):
            read_everything(open_root(root).open("train", "web"))
        path.write_bytes(original)
    read_everything(open_root(root).open("train", "web"))


def test_only_the_blocks_that_are_read_are_verified(root):
    flip(root / "train" / "web" / "shard-00000.bin", 2 * BLOCK)
    shards = open_root(root).open("train", "web")
    shards.read(0, 0, BLOCK)  # 2 bytes each: the first two blocks
    with pytest.raises(DataError, match=f"bytes {2 * BLOCK} to {3 * BLOCK}"):
        shards.read(0, BLOCK - 1, 2)


def test_verification_can_be_switched_off(root):
    flip(root / "train" / "web" / "shard-00000.bin", 0)
    open_root(root, verify=False).open("train", "web").read(0, 0, 10)


@pytest.mark.parametrize("name", ["shards.json", "train/web/manifest.json"])
def test_a_flipped_bit_in_a_json_file_is_refused_by_name(root, name):
    text = (root / name).read_text()
    for old, new in [('"tokens": ', '"tokens": 1'), ("{", "["), ('"version": 1', '"version": 2')]:
        (root / name).write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=name):
            open_root(root).open("train", "web")
    (root / name).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=name):
        open_root(root)


def test_a_directory_that_is_no_shard_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"shards.json: does not exist; give the output directory"):
        open_root(tmp_path)


def test_a_set_that_was_made_again_is_refused(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "web"
    write_set(other, documents(seed=9))
    for file in (root / "train" / "web").iterdir():
        file.unlink()
    for file in other.iterdir():
        file.rename(root / "train" / "web" / file.name)
    with pytest.raises(DataError, match=r"train/web/manifest.json: is not the one"):
        open_root(root)


def resealed(path: Path, change):
    value = read_sealed(path)
    change(value)
    path.unlink()
    publish_sealed(path, value)


def test_a_manifest_cannot_name_files_outside(tmp_path):
    write_set(tmp_path / "web", documents(3))
    for name in ("../secret.bin", "/etc/passwd.bin", "a/b.bin", ".bin", "shard.txt"):

        def rename(value, name=name):
            value["shards"][0]["files"]["bin"]["name"] = name

        resealed(tmp_path / "web" / "manifest.json", rename)
        with pytest.raises(DataError, match=r"manifest.json"):
            ShardSet(tmp_path / "web")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["shards"][0].update(documents=2**70),
        lambda value: value["shards"][0].update(tokens=-1),
        lambda value: value.update(tokens=2**60),
        lambda value: value.update(dtype="object"),
        lambda value: value.update(shards=[{}]),
        lambda value: value.update(shards=7),
        lambda value: value.update(block_bytes=0),
        lambda value: value["shards"][0]["files"]["bin"]["blocks"].pop(),
        lambda value: value["shards"][0]["files"]["bin"].update(blocks=["xyz"]),
        lambda value: value["shards"][0]["files"]["idx"].update(bytes="many"),
    ],
)
def test_an_impossible_manifest_is_refused_by_name(tmp_path, change):
    write_set(tmp_path / "web", documents(3))
    resealed(tmp_path / "web" / "manifest.json", change)
    with pytest.raises(DataError, match=r"web/manifest.json"):
        ShardSet(tmp_path / "web")


def test_the_manifest_and_the_index_must_agree_on_the_documents(tmp_path):
    write_set(tmp_path / "web", documents(3), max_shard_bytes=1 << 20)

    def change(value):
        value["documents"] = value["shards"][0]["documents"] = 4

    resealed(tmp_path / "web" / "manifest.json", change)
    with pytest.raises(DataError, match=r"shard-00000.idx: has 3 documents"):
        ShardSet(tmp_path / "web").read(0, 0, 1)


def test_links_that_lead_out_are_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "shard-00000.bin"
    inside = root / "train" / "web" / "shard-00000.bin"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(DataError, match=r"shard-00000.bin: leads out"):
        open_root(root).open("train", "web")


def test_a_source_directory_that_leads_out_is_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "books"
    (root / "train" / "books").rename(outside)
    (root / "train" / "books").symlink_to(outside)
    with pytest.raises(DataError, match=r"train/books: leads out"):
        open_root(root)


def test_the_root_is_not_written_over_missing_or_foreign_shards(root):
    with pytest.raises(DataError, match=r"manifest.json: does not exist"):
        write_root(root, TOKENIZER, {"train": ["absent"]})
    with pytest.raises(DataError, match="made by tokenizer"):
        write_root(root, TOKENIZER | {"fingerprint": "e" * 64}, {"train": ["web"]})
    with pytest.raises(DataError, match=r"'\.\./web' is not a plain name"):
        write_root(root, TOKENIZER, {"train": ["../web"]})
    with pytest.raises(DataError, match="tokenizer file does not exist"):
        write_root(root, TOKENIZER | {"file": "absent.model"}, {"train": ["web"]})


def test_verify_finds_nothing_in_sound_shards_and_counts_every_byte(root):
    seen = []
    assert verify(root, lambda done, total: seen.append((done, total))) == []
    size = sum(path.stat().st_size for path in root.glob("*/*/shard-*"))
    assert seen[-1] == (size, size)
    assert verify(root / "train" / "web") == []


def test_verify_finds_every_problem_in_one_pass(root):
    web, books = root / "train" / "web", root / "train" / "books"
    flip(web / "shard-00000.bin", 5)
    flip(web / "shard-00000.bin", 2 * BLOCK)
    flip(books / "shard-00000.idx", 40)
    (books / "shard-00001.bin").unlink()
    os.truncate(root / "validation" / "web" / "shard-00000.provenance.parquet", 10)
    problems = verify(root)
    assert len(problems) == 5
    for name in ("web/shard-00000.bin: bytes 0 to", "web/shard-00000.bin: bytes 128 to", "books/shard-00000.idx"):
        assert any(name in problem for problem in problems)
    assert any("books/shard-00001.bin: No such file" in problem for problem in problems)
    assert any("validation/web/shard-00000.provenance.parquet" in problem for problem in problems)


def test_verify_goes_on_when_the_root_is_damaged(root):
    flip(root / "train" / "web" / "shard-00000.bin", 5)
    value = json.loads((root / "shards.json").read_text())
    value["tokenizer"]["bos_id"] = 7
    (root / "shards.json").write_text(json.dumps(value))
    problems = verify(root)
    assert len(problems) == 2
    assert "shards.json: does not match its own checksum" in problems[0]


def test_verify_finds_ids_outside_the_vocabulary(tmp_path):
    write_set(tmp_path / "web", [np.array([1, 280, 2])])
    resealed(tmp_path / "web" / "manifest.json", lambda value: value.update(vocabulary_size=200))
    assert "shard-00000.bin: a token id between bytes 0 and 6 is outside" in verify(tmp_path / "web")[0]


def test_more_shards_than_are_kept_open_can_be_read(tmp_path):
    write_set(tmp_path / "web", [np.array([shard, 7]) for shard in range(70)], max_shard_bytes=4)
    shards = ShardSet(tmp_path / "web")
    assert len(shards.shard_tokens) == 70
    for _ in range(2):
        assert [shards.read(shard, 0, 1)[0] for shard in range(70)] == list(range(70))
    assert len(os.listdir("/proc/self/fd")) < 64 * 2 + 100


def test_the_shards_need_nothing_but_numpy_and_pyarrow():
    program = "import sys, data_pipeline.shards.reader, data_pipeline.shards.writer, data_pipeline.shards.verify\n"
    program += "print([name for name in ('torch', 'llama_train', 'hydra', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
