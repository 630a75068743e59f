"""Who is slow, and whose copy has changed, from what ranks report."""

import numpy
import pytest
import torch

from llama_foundation.errors import RunError
from llama_train.engine.engine import Chunk
from llama_train.survive import replicas
from llama_train.survive.replicas import compare_replicas
from llama_train.survive.slow_ranks import slowest


def test_the_slow_rank_is_named_and_noise_is_not() -> None:
    ranks = [["a", 0.20], ["b", 0.55], ["c", 0.21], ["d", 0.19]]
    assert slowest(ranks, 1.3) == "slow rank: rank 1 (b) takes 0.550 s a step of its own, the median rank 0.200 s"
    assert slowest([["a", 0.20], ["b", 0.25]], 1.3) is None
    assert slowest([["a", 0.001], ["b", 0.009]], 1.3) is None  # nine times as long, and nothing
    assert slowest([], 1.3) is None


def chunks(changed: str | None = None) -> list[Chunk]:
    tensors = {"weights/a": torch.arange(6.0).reshape(2, 3), "optimizer/exp_avg/a": torch.ones(2, 3)}
    if changed is not None:
        tensors[changed].view(torch.int32)[0, 1] ^= 1  # one bit
    return [Chunk(name, (2, 3), (0, 0), tensor) for name, tensor in tensors.items()]


@pytest.mark.parametrize(
    ("ranks", "who"),
    [
        ([None, "weights/a", None], "rank 1 differs from the other 2"),
        ([None, "optimizer/exp_avg/a"], "ranks 0, 1 disagree, and no majority says who is right"),
    ],
)
def test_one_flipped_bit_is_found_and_blamed(
    ranks: list[str | None], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(mine: bytes, group: None) -> list[bytes]:
        """What the other ranks would have sent."""
        found = [[hashes for _, hashes in replicas._hashes(chunks(changed))] for changed in ranks]
        return [numpy.array(each, dtype=numpy.uint64).tobytes() for each in found]

    monkeypatch.setattr(replicas, "gather_bytes", parts)
    name = next(filter(None, ranks))
    with pytest.raises(RunError, match=f"after step 7: {name} is not the same on all ranks that hold it: {who}"):
        compare_replicas(7, chunks(ranks[0]), None)


def test_what_is_held_once_or_alike_is_fine() -> None:
    compare_replicas(7, chunks(), None)
