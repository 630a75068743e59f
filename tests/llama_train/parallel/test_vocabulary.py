"""A vocabulary cut over ranks against the whole one, in float64; and groups that time out when they are told to."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llama_train.model.llama import IGNORE
from tests.llama_train.parallel.vocabulary_job import compute_all, hang
from tests.llama_train.parallel.worlds import in_world

SIZES = (12, 13, 4)  # divides over 3, does not, and leaves the last rank almost nothing
WAYS = 3


def inputs(size: int) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(size)
    labels = torch.randint(size, (2, 5), generator=generator)
    labels[0, :3] = IGNORE
    return {
        "tokens": torch.randint(size, (2, 5), generator=generator).numpy(),
        "labels": labels.numpy(),
        "hidden": (4 * torch.randn(2, 5, 6, dtype=torch.float64, generator=generator)).numpy(),
        "weight": torch.randn(size, 6, dtype=torch.float64, generator=generator).numpy(),
    }


@pytest.fixture(scope="module")
def ranks() -> list[list[dict]]:
    return in_world(compute_all, 3, 3, {size: inputs(size) for size in SIZES})


@pytest.mark.parametrize("number", range(len(SIZES) * WAYS))
def test_a_cut_vocabulary_gives_the_loss_and_gradients_of_a_whole_one(number: int, ranks: list) -> None:
    size = SIZES[number // WAYS]
    given = {name: torch.from_numpy(value) for name, value in inputs(size).items()}
    hidden, weight = given["hidden"].requires_grad_(), given["weight"].requires_grad_()
    logits = hidden @ weight.T
    loss = F.cross_entropy(logits.flatten(0, 1), given["labels"].flatten(), ignore_index=IGNORE, reduction="sum")
    (3 * loss).backward()
    loss = loss.detach()
    found = [rank[number] for rank in ranks]
    for each in found:
        assert each["loss"] == pytest.approx(float(loss), abs=1e-12)
        assert each["evaluated"] == pytest.approx(float(loss), abs=1e-12)
        assert each["count"] == 7
        np.testing.assert_allclose(each["hidden"], hidden.grad.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(each["logits"], logits.detach().numpy(), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(each["embedded"], weight.detach()[given["tokens"]].numpy())
        assert each["filled"] == 0
    rows = np.concatenate([each["weight"] for each in found])
    np.testing.assert_allclose(rows, weight.grad.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "axes", [{"tensor": 2}, {"context": 2}, {"pipeline": 2}, {"data_shard": 2}, {"data_replicate": 2}], ids=str
)
def test_a_group_gives_up_after_the_time_it_was_told(axes: dict[str, int]) -> None:
    answers, _ = in_world(hang, 2, axes, 2.0)
    assert (
        answers.keys()
        == {
            "tensor": {"tensor"},
            "context": {"context", "shard"},
            "pipeline": {"pipeline", "ends"},
            "data_shard": {"shard"},
            "data_replicate": {"replicate"},
        }[next(iter(axes))]
    )
    for seconds, error in answers.values():
        assert 1.5 < seconds < 2.0 + 8.0, error  # the default is half an hour
        assert "imeout" in error or "imed out" in error
