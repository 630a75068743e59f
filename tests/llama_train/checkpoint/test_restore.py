import json
import math
import os
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from checkpoint_helpers import (
    SHAPES,
    flip_bit,
    free_port,
    multiprocessing_context,
    rank_chunks,
    rank_main,
    run_ranks,
    whole_tensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint import store as store_module
from llama_train.checkpoint import stored_chunk
from llama_train.checkpoint.collective import broadcast_bytes, gather_bytes
from llama_train.checkpoint.index_writer import seal
from llama_train.checkpoint.restore import newest_good, open_checkpoint, restore
from llama_train.checkpoint.store import CheckpointStore
from llama_train.engine.engine import Chunk

EMBEDDING = "weights/model.embed_tokens.weight"


@pytest.fixture
def small_blocks(monkeypatch):
    """Chunks of several checksum blocks, read in several goes, without large tensors."""
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 100)
    monkeypatch.setattr(stored_chunk, "ROWS_BYTES", 150)


@pytest.fixture
def saved(tmp_path):
    CheckpointStore(tmp_path / "checkpoints").save(4, rank_chunks(0, 1), {"seen": 9})
    return tmp_path / "checkpoints" / "step-00000004"


def save_as_ranks(directory: Path, world: int, by: str) -> None:
    """What `world` ranks write, as one process that has all of their rectangles."""
    chunks = [chunk for rank in range(world) for chunk in rank_chunks(rank, world, by=by)]
    CheckpointStore(directory).save(1, chunks, {})


@pytest.mark.parametrize("by", ["rows", "columns", "mixed"])
def test_any_rectangle_is_read_exactly(tmp_path, small_blocks, by):
    save_as_ranks(tmp_path, 3, by)
    checkpoint = open_checkpoint(tmp_path)
    random = numpy.random.default_rng(0)
    for name, whole in whole_tensors().items():
        for _ in range(25):
            low = [int(random.integers(0, size)) for size in whole.shape]
            lengths = [int(random.integers(0, size - begin + 1)) for size, begin in zip(whole.shape, low, strict=True)]
            expected = whole[tuple(slice(b, b + n) for b, n in zip(low, lengths, strict=True))]
            found = checkpoint.read(name, tuple(low), tuple(lengths))
            assert found.dtype == whole.dtype
            assert torch.equal(found, expected)


def test_restore_yields_the_targets_rectangles_and_leaves_other_kinds_out(saved):
    checkpoint = open_checkpoint(saved)
    assert (checkpoint.step, checkpoint.state) == (4, {"seen": 9})
    weights = [chunk for chunk in rank_chunks(1, 2) if chunk.name.startswith("weights/")]
    blank = [Chunk(c.name, c.shape, c.offsets, torch.zeros_like(c.tensor)) for c in weights]
    for found, expected in zip(restore(checkpoint, blank), weights, strict=True):
        assert (found.name, found.shape, found.offsets) == (expected.name, expected.shape, expected.offsets)
        assert torch.equal(found.tensor, expected.tensor)


def test_a_path_may_be_the_step_the_checkpoints_or_the_run(saved):
    for path in (saved, saved.parent, saved.parent.parent, str(saved)):
        assert open_checkpoint(path).directory == saved
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(saved.parent.parent / "elsewhere")
    (saved.parent.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(saved.parent.parent / "empty")


def test_the_highest_step_is_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=9)
    for step in (99_999_999, 100_000_000, 8):  # by number, not by text: the second name is longer
        store.save(step, rank_chunks(0, 1), {})
    assert open_checkpoint(tmp_path).step == 100_000_000


def test_checkpoint_of_another_model_names_the_tensor_and_both_shapes(saved):
    checkpoint = open_checkpoint(saved)
    targets = list(rank_chunks(0, 1))
    wrong = Chunk(EMBEDDING, (40, 12), (0, 0), torch.zeros(40, 12))
    with pytest.raises(CheckpointError, match=r"another model: weights/model.embed_tokens.weight.*\[37, 12\].*\[40, 1"):
        list(restore(checkpoint, [wrong, *targets[1:]]))
    more = Chunk("weights/lm_head.weight", (3,), (0,), torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing in the checkpoint and of shape \[3\] in"):
        list(restore(checkpoint, [*targets, more]))
    with pytest.raises(CheckpointError, match=r"model.norm.weight is of shape \[12\] in the checkpoint and missing in"):
        list(restore(checkpoint, [target for target in targets if target.name != "weights/model.norm.weight"]))


def test_a_deleted_rank_file_is_named(tmp_path):
    save_through_ranks(tmp_path, 2)
    (tmp_path / "step-00000001" / "rank-00001.bin").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001\.bin: missing"):
        open_checkpoint(tmp_path)


def test_a_truncated_rank_file_is_named(saved):
    os.truncate(saved / "rank-00000.bin", 1000)
    with pytest.raises(CheckpointError, match=r"rank-00000\.bin: has 1000 bytes"):
        open_checkpoint(saved)


def test_a_rank_file_truncated_after_opening_is_named(saved):
    checkpoint = open_checkpoint(saved)
    os.truncate(saved / "rank-00000.bin", 1000)
    with pytest.raises(CheckpointError, match=r"rank-00000\.bin: truncated at byte 1000; it holds a part of"):
        checkpoint.read(EMBEDDING, (0, 0), (37, 12))


def test_a_flipped_bit_is_found_by_whoever_reads_its_block_and_only_by_them(tmp_path, small_blocks):
    save_as_ranks(tmp_path, 1, "rows")
    flip_bit(tmp_path / "step-00000001" / "rank-00000.bin", 210)  # the embedding's third block: rows 4 (part) to 6
    checkpoint = open_checkpoint(tmp_path)
    whole = whole_tensors()[EMBEDDING]
    assert torch.equal(checkpoint.read(EMBEDDING, (0, 0), (4, 12)), whole[:4])
    assert torch.equal(checkpoint.read(EMBEDDING, (7, 3), (30, 5)), whole[7:, 3:8])
    with pytest.raises(CheckpointError, match=r"rank-00000\.bin: damaged: bytes 200 to 300, a part of weights/"):
        checkpoint.read(EMBEDDING, (5, 0), (1, 1))


@pytest.mark.parametrize("byte", [3, 40, 60, 300])
def test_a_flipped_bit_in_the_index_is_found(saved, byte):
    flip_bit(saved / "index.json", byte)
    with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
        open_checkpoint(saved)


def test_a_symbolic_link_is_refused(saved, tmp_path):
    shutil.move(saved / "rank-00000.bin", tmp_path / "secret")
    (saved / "rank-00000.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="may not be links"):
        open_checkpoint(saved)


def test_newest_good_passes_over_damaged_ones_and_says_why(tmp_path):
    assert newest_good(tmp_path / "nothing") == (None, [])
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=5)
    for step in (1, 2, 3, 4):
        store.save(step, rank_chunks(0, 1), {"step": step})
    (tmp_path / "checkpoints/step-00000004/rank-00000.bin").unlink()
    flip_bit(tmp_path / "checkpoints/step-00000003/index.json", 200)
    checkpoint, skipped = newest_good(tmp_path)
    assert checkpoint.state == {"step": 2}
    assert [("step-00000004" in text, "step-00000003" in text) for text in skipped] == [(True, False), (False, True)]
    for step in (1, 2):
        os.truncate(tmp_path / f"checkpoints/step-0000000{step}/rank-00000.bin", 5)
    checkpoint, skipped = newest_good(tmp_path)
    assert checkpoint is None
    assert len(skipped) == 4


def test_retention_counts_only_sound_checkpoints(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2):
        store.save(step, rank_chunks(0, 1), {"step": step})
    os.truncate(tmp_path / "step-00000002/rank-00000.bin", 5)
    store.save(3, rank_chunks(0, 1), {"step": 3})
    assert store.steps() == [1, 3]
    store.save(4, rank_chunks(0, 1), {"step": 4})
    assert store.steps() == [3, 4]


def save_through_ranks(directory: Path, world: int, by: str = "mixed", asynchronous: bool = False) -> None:
    run_ranks(world, _save, directory, by, asynchronous)


def _save(rank, world, group, directory, by, asynchronous):
    store = CheckpointStore(directory, group, asynchronous=asynchronous)
    store.save(1, rank_chunks(rank, world, by=by), {"world": world})
    store.wait()


def _restore_and_compare(rank, world, group, directory, by):
    checkpoint = open_checkpoint(directory, group)
    expected = list(rank_chunks(rank, world, by=by))
    blank = [Chunk(c.name, c.shape, c.offsets, torch.zeros_like(c.tensor)) for c in expected]
    for found, chunk in zip(restore(checkpoint, blank), expected, strict=True):
        assert torch.equal(found.tensor, chunk.tensor), found.name
    return checkpoint.state["world"]


def test_saved_on_4_ranks_and_read_on_1_2_and_3(tmp_path):
    """Rows, columns and replicated vectors; asynchronously written; every rank compares with the original tensors."""
    save_through_ranks(tmp_path, 4, by="mixed", asynchronous=True)
    assert sorted(path.name for path in (tmp_path / "step-00000001").glob("rank-*")) == [
        f"rank-0000{rank}.bin" for rank in range(4)
    ]
    assert _restore_and_compare(0, 1, None, tmp_path, "rows") == 4
    assert run_ranks(2, _restore_and_compare, tmp_path, "columns") == ["4", "4"]
    assert run_ranks(3, _restore_and_compare, tmp_path, "rows") == ["4", "4", "4"]


def _fails_on_rank_1(rank, world, group, directory):
    store = CheckpointStore(directory, group)
    store.save(1, rank_chunks(rank, world), {})
    if rank == 1:
        store_module._write = _no_space
    with pytest.raises(CheckpointError) as caught:
        store.save(2, rank_chunks(rank, world), {})
    assert store.steps() == [1]
    return caught.value


def _no_space(file, data):
    raise OSError(28, "No space left on device")


def test_disk_full_on_one_rank_raises_on_all_and_names_it(tmp_path):
    messages = run_ranks(2, _fails_on_rank_1, tmp_path)
    assert messages[0] == messages[1]
    assert "rank 1: " in messages[0]
    assert "rank-00001.bin: No space left on device" in messages[0]
    assert "step-00000001 stays the latest" in messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def _opens_damaged(rank, world, group, directory):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory, group)
    good, skipped = newest_good(directory, group)
    assert len(skipped) == 1
    assert good.step == 1
    # a tensor that no rank has, though each rank lacks some that others have
    mine = [chunk for chunk in rank_chunks(0, 1) if ("embed_tokens" in chunk.name) == (rank == 0)]
    list(restore(good, mine))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*missing in the model"):
        list(restore(good, [chunk for chunk in mine if "norm" not in chunk.name]))
    payload = bytes([rank]) * rank * 3
    assert gather_bytes(payload, group) == ([b"", b"\1\1\1"] if rank == 0 else [])
    assert broadcast_bytes(b"x" if rank == 0 else None, group) == b"x"
    assert broadcast_bytes(b"" if rank == 0 else None, group) == b""
    return caught.value


def test_every_rank_hears_what_rank_0_found_damaged(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in (1, 2):
        store.save(step, rank_chunks(0, 1), {})
    (tmp_path / "step-00000002" / "rank-00000.bin").unlink()
    messages = run_ranks(2, _opens_damaged, tmp_path)
    assert messages[0] == messages[1]
    assert "step-00000002/rank-00000.bin: missing" in messages[0]


def _dies(rank, world, group, directory):
    store = CheckpointStore(directory, group)
    store.save(1, rank_chunks(rank, world), {})
    if rank == 1:
        os._exit(9)
    with pytest.raises(CheckpointError, match="a rank is gone"):
        store.save(2, rank_chunks(rank, world), {})
    (directory / "survivor").write_text("raised")


def test_a_rank_that_dies_while_saving_leaves_the_previous_latest_and_does_not_hang(tmp_path):
    context = multiprocessing_context()
    results = context.Queue()
    port = free_port()
    processes = [context.Process(target=rank_main, args=(r, 2, port, results, _dies, (tmp_path,))) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert not process.is_alive()
    assert (tmp_path / "survivor").read_text() == "raised"
    assert CheckpointStore(tmp_path).steps() == [1]
    assert newest_good(tmp_path)[1] == []


def rewrite(step: Path, change) -> None:
    """Apply `change` to the index's JSON and seal it again, as someone who means harm would."""
    index = json.loads((step / "index.json").read_bytes())
    del index["checksum"]
    index = change(index) or index
    (step / "index.json").write_bytes(seal(json.dumps(index).encode()))


def _set(tensor, key, value):
    def change(index):
        index["tensors"][tensor][key] = value

    return change


def _column(column, change):
    """Change a column of the only rank: in `saved`, EMBEDDING is its first chunk, [37, 12] of float32."""

    def change_column(index):
        index["ranks"][0][column] = change(index["ranks"][0][column])

    return change_column


def _another_rank(index):
    index["ranks"].append({"bytes": 0, "tensors": [], "offsets": [], "lengths": [], "checksums": ""})


HARMFUL = {
    "tensor that does not exist": (_column("tensors", lambda rows: [7000, *rows[1:]]), "tensor that does not exist"),
    "negative tensor": (_column("tensors", lambda rows: [-1, *rows[1:]]), "rank-00000.*tensor that does not exist"),
    "beyond the file": (_column("bytes", lambda size: size - 4), r"rank-00000\.bin: has \d+ bytes, but its chunks end"),
    "more than the chunks": (_column("bytes", lambda size: size + 64), r"rank-00000\.bin.*but its chunks end at"),
    "absurdly long file": (_column("bytes", lambda size: 2**60), r"rank-00000\.bin: has"),
    "negative file": (_column("bytes", lambda size: -1), r"rank-00000\.bin: bytes: -1 is not"),
    "chunk larger than the file": (_column("bytes", lambda size: 64), "less than its chunks take"),
    "chunk left out": (_column("tensors", lambda rows: rows[1:]), r"rank-00000\.bin: offsets has \d+ numbers"),
    "offset left out": (_column("offsets", lambda rows: rows[1:]), r"rank-00000\.bin: offsets has \d+ numbers"),
    "length too many": (_column("lengths", lambda rows: [*rows, 1]), r"rank-00000\.bin: lengths has \d+ numbers"),
    "outside of the shape": (_column("offsets", lambda rows: [1, *rows[1:]]), "embed_tokens.*outside of the tensor"),
    "negative offset": (_column("offsets", lambda rows: [-1, *rows[1:]]), "embed_tokens.*outside of the tensor"),
    "empty chunk": (_column("lengths", lambda rows: [0, *rows[1:]]), "embed_tokens.*outside of the tensor"),
    "overflowing offset": (_column("offsets", lambda rows: [2**63 - 1, *rows[1:]]), "embed_tokens.*outside of the"),
    "overlong integer": (_column("offsets", lambda rows: [2**63, *rows[1:]]), "offsets holds an integer that is too"),
    "boolean": (_column("tensors", lambda rows: [False, *rows[1:]]), "rank-00000.*tensors is not a list of integers"),
    "fraction": (_column("offsets", lambda rows: [0.0, *rows[1:]]), "rank-00000.*offsets is not a list of integers"),
    "text": (_column("lengths", lambda rows: ["37", *rows[1:]]), "rank-00000.*lengths is not a list of integers"),
    "a table": (_column("lengths", lambda rows: [[37], *rows[1:]]), "rank-00000.*lengths is not a list of integers"),
    "no checksum": (_column("checksums", lambda digests: digests[32:]), "rank-00000.*checksums: not 32 digits for"),
    "checksums in a list": (_column("checksums", lambda digests: [digests]), "rank-00000.*checksums: not 32 digits"),
    "no ranks": (lambda index: index | {"ranks": []}, "ranks: not a list of at least one object"),
    "a rank of none": (lambda index: index | {"ranks": [None]}, "ranks: not a list of at least one object"),
    "gap": (_set(EMBEDDING, "shape", [38, 12]), "embed_tokens.*chunks are missing: they hold 444 elements of 456"),
    "huge shape": (_set(EMBEDDING, "shape", [2**40, 2**40]), "embed_tokens.*too large"),
    "negative shape": (_set(EMBEDDING, "shape", [-1, 12]), r"embed_tokens\.weight: shape: -1 is not"),
    "many dimensions": (_set(EMBEDDING, "shape", [1] * 40), r"embed_tokens\.weight: shape"),
    "object dtype": (_set(EMBEDDING, "dtype", "object"), r"embed_tokens\.weight: dtype 'object'; known: float64"),
    "unhashable dtype": (_set(EMBEDDING, "dtype", ["float32"]), r"embed_tokens\.weight: dtype"),
    "tiny blocks": (lambda index: index | {"block_bytes": 0}, "block_bytes: 0"),
    "newer version": (lambda index: index | {"version": 3}, "version 3; this release reads version 2"),
    "another format": (lambda index: index | {"format": "x"}, "not the index"),
    "escape": (lambda index: index | {"files": {"../../etc/passwd": [1, "x"]}}, "not a plain relative path"),
    "absolute": (lambda index: index | {"files": {"/etc/passwd": [1, "x"]}}, "not a plain relative path"),
    "many ranks": (_another_rank, r"rank-00001\.bin: missing"),
    "a list": (lambda index: [index], "not readable as JSON"),
    "an empty object": (lambda index: {"x": 1}, "not the index"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_index_is_refused_by_name(saved, name):
    change, message = HARMFUL[name]
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(saved)


def test_overlap_is_refused_even_when_the_sizes_add_up(tmp_path):
    """Two rectangles of half the tensor each, one upon the other in a corner."""
    half = torch.zeros(2, 4)
    CheckpointStore(tmp_path).save(
        1, [Chunk("weights/a", (4, 4), (0, 0), half), Chunk("weights/a", (4, 4), (2, 0), half)], {}
    )
    rewrite(tmp_path / "step-00000001", _column("offsets", lambda rows: [0, 0, 1, 0]))
    with pytest.raises(CheckpointError, match="weights/a: chunks overlap"):
        open_checkpoint(tmp_path)


def test_deep_json_is_refused(saved):
    (saved / "index.json").write_bytes(seal(b'{"state":' + b"[" * 200_000 + b"]" * 200_000 + b"}"))
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        open_checkpoint(saved)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(2**63) | st.just(-1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_index_is_either_refused_or_reads_like_the_original(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    if not directory.exists():
        save_as_ranks(directory, 3, "mixed")
        (directory / "original.json").write_bytes((directory / "step-00000001" / "index.json").read_bytes())
    step = directory / "step-00000001"
    index = json.loads((directory / "original.json").read_bytes())
    del index["checksum"]
    for _ in range(data.draw(st.integers(1, 2))):
        node = index
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and data.draw(st.integers(0, 5)):
                node = node[key]
                continue
            node[key] = data.draw(JSON_VALUES)
            break
    (step / "index.json").write_bytes(seal(json.dumps(index).encode()))
    try:
        checkpoint = open_checkpoint(step)
    except CheckpointError:
        return
    promised = sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in checkpoint.tensors.values())
    assert promised <= sum(path.stat().st_size for path in step.glob("rank-*"))
    for name, entry in checkpoint.tensors.items():
        try:
            found = checkpoint.read(name, (0,) * len(entry.shape), entry.shape)
        except CheckpointError:
            continue
        if name in SHAPES and entry.dtype == SHAPES[name][1] and found.shape == SHAPES[name][0]:
            assert torch.equal(found, whole_tensors()[name])
