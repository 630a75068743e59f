import contextlib
import json
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest
import torch
import xxhash
from checkpoint_helpers import multiprocessing_context, rank_chunks, whole_tensors

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint import store as store_module
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.checkpoint.store import CheckpointStore
from llama_train.engine.engine import Chunk


def whole_chunks(seed=0):
    return rank_chunks(0, 1, seed)


def test_bytes_on_disk_are_what_the_format_says(tmp_path):
    """Built by hand from the description in docs/checkpoints.md."""
    store = CheckpointStore(tmp_path)
    first = torch.tensor([[1.0, -2.0], [3.5, 0.25]])
    second = torch.tensor([7, -1], dtype=torch.int64)
    store.save(7, [Chunk("weights/a", (2, 2), (0, 0), first), Chunk("weights/b", (2,), (0,), second)], {"x": 1})

    first_bytes, second_bytes = struct.pack("<4f", 1, -2, 3.5, 0.25), struct.pack("<2q", 7, -1)
    directory = tmp_path / "step-00000007"
    assert (directory / "rank-00000.bin").read_bytes() == first_bytes + bytes(48) + second_bytes
    text = (directory / "index.json").read_bytes()
    line, _, rest = text.partition(b"\n")
    assert line == b'{"checksum":"' + xxhash.xxh3_128_hexdigest(b"\n" + rest).encode() + b'",'
    index = json.loads(text)
    assert index["step"] == 7
    assert index["state"] == {"x": 1}
    assert index["tensors"] == {
        "weights/a": {"dtype": "float32", "shape": [2, 2]},
        "weights/b": {"dtype": "int64", "shape": [2]},
    }
    assert index["ranks"] == [
        {
            "bytes": 16 + 48 + 16,
            "tensors": [0, 1],
            "offsets": [0, 0, 0],
            "lengths": [2, 2, 2],
            "checksums": xxhash.xxh3_128_hexdigest(first_bytes) + xxhash.xxh3_128_hexdigest(second_bytes),
        }
    ]
    assert sorted(path.name for path in directory.iterdir()) == ["index.json", "rank-00000.bin"]


def test_files_are_copied_with_their_checksum(tmp_path):
    source = tmp_path / "somewhere.model"
    source.write_bytes(b"pieces")
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, whole_chunks(), {}, {"tokenizer/tokenizer.model": source})
    step = store.latest()
    assert (step / "tokenizer" / "tokenizer.model").read_bytes() == b"pieces"
    assert open_checkpoint(step).tokenizer_files() == {"tokenizer.model": step / "tokenizer/tokenizer.model"}
    (step / "tokenizer" / "tokenizer.model").write_bytes(b"pieceZ")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*checksum"):
        open_checkpoint(step)


def test_retention_keeps_the_newest_and_every_kth(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_every=30)
    seen = []
    for step in (10, 20, 30, 40, 50, 60):
        store.save(step, whole_chunks(), {})
        seen.append(store.steps())
    assert seen == [[10], [10, 20], [20, 30], [30, 40], [30, 40, 50], [30, 50, 60]]
    assert store.latest() == tmp_path / "step-00000060"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_retention_never_deletes_the_checkpoint_just_written(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(100, whole_chunks(), {})
    store.save(90, whole_chunks(), {})  # the run started over from before a damaged step 100
    assert store.steps() == [90, 100]


def test_a_checkpoint_whose_damage_was_found_while_it_was_read_keeps_no_good_one_out(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2):
        store.save(step, whole_chunks(), {})
    store.damaged.add(2)  # its sizes are right: whoever looks at it again finds nothing
    store.save(3, whole_chunks(), {})
    assert store.steps() == [1, 3]


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(5, whole_chunks(seed=1), {"attempt": 1})
    store.save(5, whole_chunks(seed=2), {"attempt": 2})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.state == {"attempt": 2}
    name = "weights/model.norm.weight"
    assert torch.equal(checkpoint.read(name, (0,), (12,)), whole_tensors(2)[name])


def test_a_replaced_step_comes_back_when_its_replacement_was_never_published(tmp_path):
    CheckpointStore(tmp_path).save(5, whole_chunks(), {})
    os.rename(tmp_path / "step-00000005", tmp_path / ".step-00000005.replaced")  # killed between the two renames
    assert CheckpointStore(tmp_path).steps() == [5]


def test_leftovers_of_dead_processes_are_removed_at_start(tmp_path):
    for name in (".step-00000003.partial", ".step-00000002.deleted", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-00000.bin").write_bytes(b"x")
    assert CheckpointStore(tmp_path).latest() is None
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_error_in_the_middle_leaves_the_previous_checkpoint_the_latest(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, whole_chunks(), {})

    def broken():
        yield next(iter(whole_chunks()))
        raise RuntimeError("device lost")

    with pytest.raises(CheckpointError, match=r"step 2 is not saved.*rank 0.*device lost.*step-00000001 stays"):
        store.save(2, broken(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    store.save(3, whole_chunks(), {})
    assert store.steps() == [1, 3]


def test_a_tensor_that_nobody_owns_is_not_published(tmp_path):
    store = CheckpointStore(tmp_path)
    half = Chunk("weights/a", (4, 2), (0, 0), torch.ones(2, 2))
    with pytest.raises(CheckpointError, match="weights/a: chunks are missing"):
        store.save(1, [half], {})
    assert store.latest() is None


def test_state_that_is_not_json_is_refused_and_nothing_is_published(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="TypeError"):
        store.save(1, whole_chunks(), {"path": Path("x")})
    assert list(tmp_path.iterdir()) == []


def test_disk_full_names_the_file_the_bytes_and_what_stays(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, whole_chunks(), {})
    real = store_module._write

    def full(file, data):
        if file.tell() > 1000:
            raise OSError(28, "No space left on device")
        real(file, data)

    monkeypatch.setattr(store_module, "_write", full)
    message = r"rank 0: .*rank-00000\.bin: No space left on device: \d+ bytes needed.*step-00000001 stays the latest"
    with pytest.raises(CheckpointError, match=message):
        store.save(2, whole_chunks(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_file_system_is_survived(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store = CheckpointStore(mount, keep_last=9)
        large = [Chunk("weights/a", (100, 256), (0, 0), torch.zeros(100, 256))]  # 102,400 bytes
        store.save(1, large, {})
        with pytest.raises(CheckpointError, match=r"No space left.*102400 bytes needed.*step-00000001 stays"):
            store.save(2, large, {})
        assert [path.name for path in mount.iterdir()] == ["step-00000001"]
        assert open_checkpoint(mount).step == 1
    finally:
        subprocess.run(["umount", mount], check=True)


def test_asynchronous_writes_the_same_bytes_and_copies_before_it_returns(tmp_path, monkeypatch):
    CheckpointStore(tmp_path / "now").save(3, whole_chunks(), {"a": [1]})
    chunks = list(whole_chunks())
    state = {"a": [1]}
    real = store_module._write

    def slow(file, data):
        time.sleep(0.02)
        real(file, data)

    monkeypatch.setattr(store_module, "_write", slow)
    later = CheckpointStore(tmp_path / "later", asynchronous=True)
    later.save(3, chunks, state)
    for chunk in chunks:
        chunk.tensor.zero_()  # the next optimizer step
    state["a"].append(2)
    assert later.latest() is None  # it did not wait
    later.wait()
    for path in sorted((tmp_path / "now").rglob("*.*")):
        if path.is_file():
            assert (tmp_path / "later" / path.relative_to(tmp_path / "now")).read_bytes() == path.read_bytes()


def test_asynchronous_errors_surface_at_the_next_save_or_wait(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, asynchronous=True)
    real = store_module._write
    monkeypatch.setattr(store_module, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    store.save(1, whole_chunks(), {})
    with pytest.raises(CheckpointError, match=r"step 1 is not saved.*No space left"):
        store.save(2, whole_chunks(), {})
    store.save(3, whole_chunks(), {})
    with pytest.raises(CheckpointError, match="step 3 is not saved"):
        store.wait()
    monkeypatch.setattr(store_module, "_write", real)
    store.save(4, whole_chunks(), {})
    store.wait()
    assert store.steps() == [4]


def test_only_one_copy_is_held_at_a_time(tmp_path, monkeypatch):
    running = []
    real = store_module.write_rank_file

    def watched(path, chunks):
        running.append(1)
        assert len(running) == 1
        time.sleep(0.05)
        result = real(path, chunks)
        running.pop()
        return result

    monkeypatch.setattr(store_module, "write_rank_file", watched)
    store = CheckpointStore(tmp_path, keep_last=9, asynchronous=True)
    for step in (1, 2, 3):
        store.save(step, whole_chunks(), {})
    store.wait()
    assert store.steps() == [1, 2, 3]


def _save_until_killed(directory, step, said):
    torch.set_num_threads(1)
    store = CheckpointStore(directory, keep_last=2)
    while True:
        store.save(step, [Chunk("weights/a", (512, 256), (0, 0), torch.full((512, 256), float(step)))], {"step": step})
        said.send(step)
        step += 1


def test_kill_9_at_any_moment_leaves_a_good_latest_checkpoint(tmp_path):
    directory = tmp_path / "checkpoints"
    context = multiprocessing_context()
    reached = 0
    for kill in range(12):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_save_until_killed, args=(directory, reached + 1, sender))
        process.start()
        sender.close()
        said = [receiver.recv() for _ in range(2)]
        time.sleep(0.003 * kill)
        process.kill()  # SIGKILL
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                said.append(receiver.recv())
        checkpoint = open_checkpoint(directory)
        assert checkpoint.step in (said[-1], said[-1] + 1)  # or killed after the rename, before it could say so
        assert checkpoint.state == {"step": checkpoint.step}
        assert (checkpoint.read("weights/a", (0, 0), (512, 256)) == checkpoint.step).all()
        reached = checkpoint.step
    store = CheckpointStore(directory)
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []
    assert 1 <= len(store.steps()) <= 3


def test_memory_of_asynchronous_copies_is_used_again_and_holds_the_values_of_its_own_save(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=9, asynchronous=True)
    tensor, addresses = torch.zeros(1000), []
    for step in (1, 2, 3):
        tensor.fill_(step)
        shape = (500,) if step == 3 else (1000,)
        store.save(step, [Chunk("weights/a", shape, (0,), tensor[: shape[0]])], {})
        addresses.append(store._buffers[0].data_ptr())
        tensor.fill_(-1)  # the next step's update, while the thread writes
    store.wait()
    assert addresses[0] == addresses[1]
    for step, size in ((1, 1000), (2, 1000), (3, 500)):
        found = open_checkpoint(tmp_path / f"step-0000000{step}").read("weights/a", (0,), (size,))
        assert torch.equal(found, torch.full((size,), float(step)))
