"""Each rank's copy on its own node: what is read, and what is done where one is missing, damaged or of another save."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import rank_chunks, run_ranks

from llama_train.checkpoint.local import LocalTier
from llama_train.checkpoint.stored_chunk import DamagedError


def save_and_read(rank: int, world: int, group: Any, directory: Path) -> str:
    """Two ranks that do not see each other's directory go through everything; returns what was found, as JSON."""
    node = directory / f"node{rank}"
    tier = LocalTier(node, group, keep_last=1, asynchronous=True)
    told = {"nothing": tier.newest()[0]}
    for step in (10, 20, 30):
        # by columns: a vector is held by both, and the last rank owns it
        tier.save(step, rank_chunks(rank, world, seed=step, by="columns"), {"step": step}, {})
    tier.wait()
    told["kept"] = tier.steps()
    told["visible"] = sorted(path.name for path in node.iterdir())
    found, _ = tier.newest()
    assert found is not None and found.state["step"] == 30
    restored = {
        (chunk.name, chunk.offsets): chunk.tensor for chunk in found.restore(rank_chunks(rank, world, 0, "columns"))
    }
    expected = [chunk for chunk in rank_chunks(rank, world, 30, "columns") if chunk.tensor.numel()]
    told["same"] = len(restored) == len(expected) and all(
        torch.equal(restored[chunk.name, chunk.offsets], chunk.tensor) for chunk in expected
    )
    with pytest.raises(DamagedError, match="not of this layout"):
        list(found.restore(rank_chunks(rank, world, by="rows")))
    # rank 1 alone saves step 30 anew, as after a rewind in which rank 0 died: not the same save
    if rank == 1:
        state = json.loads(json.dumps(found.state)) | {"save": "another"}
        tier._store.save(30, iter(()), state)
        tier._store.wait()
    told["another save"] = tier.newest()[0].step
    if rank == 0:
        shutil.rmtree(tier.directory / "step-00000020")
    nothing, messages = tier.newest()
    assert nothing is None
    told["not of one save"] = messages[-1].partition(": ")[2]
    if rank == 1:
        shutil.rmtree(tier.directory)
        tier.directory.mkdir()
    told["missing on one"] = tier.newest()[1][-1].partition(": ")[2]
    return json.dumps(told)


def test_every_rank_reads_its_own_copy_and_all_take_the_same_save(tmp_path: Path) -> None:
    none = "no copy that all 2 ranks could go on from"
    for rank, told in enumerate(run_ranks(2, save_and_read, tmp_path)):
        assert json.loads(told) == {
            "nothing": None,
            "kept": [20, 30],
            "visible": [f"rank-{rank:05d}"],
            "same": True,
            "another save": 20,
            "not of one save": f"{none}: what the ranks have is not of one save",
            "missing on one": f"{none}: ranks [1] have none",
        }


def test_damaged_bytes_and_a_torn_copy_are_told(tmp_path: Path) -> None:
    tier = LocalTier(tmp_path, None, keep_last=1, asynchronous=False)
    for step in (10, 20):
        tier.save(step, rank_chunks(0, 1, seed=step), {}, {})
    data = bytearray(tier.file(20, 0).read_bytes())
    data[5] ^= 1
    tier.file(20, 0).write_bytes(data)
    found, messages = tier.newest()
    assert (found.step, messages) == (20, [])
    with pytest.raises(DamagedError, match="do not have their checksum"):
        list(found.restore(rank_chunks(0, 1)))
    tier.file(20, 0).write_bytes(data[:-1])
    found, messages = tier.newest()
    assert found.step == 10 and "truncated?" in messages[0]
