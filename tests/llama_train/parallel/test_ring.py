"""The ring's hops put together are causal attention over the whole sequence."""

import pytest
import torch

from llama_foundation.errors import ConfigError
from llama_train.config import ContextMethod, EngineConfig, LayoutConfig, Precision
from llama_train.model.attention import attention
from llama_train.parallel.context import own_tokens
from llama_train.parallel.layout import Layout
from llama_train.parallel.ring import RingAttention, check_ring, why_no_ring
from tests.llama_train.parallel.ring_job import attend
from tests.llama_train.parallel.test_resolve import config
from tests.llama_train.parallel.worlds import in_world


@pytest.mark.parametrize(("size", "kv_heads"), [(3, 2), (4, 1)])
def test_every_rank_has_the_output_and_gradients_of_one_process(size: int, kv_heads: int) -> None:
    for compared in in_world(attend, size, size, kv_heads, torch.float64):
        assert max(compared) < 1e-14 * 8


def test_bfloat16_is_as_close_as_its_rounding() -> None:
    for compared in in_world(attend, 2, 2, 2, torch.bfloat16):
        assert 1e-4 < max(compared) < 0.05  # 2^-8 of values up to 4, summed


CUDA = pytest.param(
    *("cuda", torch.bfloat16, 0.05),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("device", "dtype", "limit"), [("cpu", torch.float64, 1e-13), CUDA])
def test_the_kernels_of_one_rank_of_two_give_its_rows(device: str, dtype: torch.dtype, limit: float, rank: int) -> None:
    # The other rank is played by hand, so that one device is enough. Its own rows have no gradient.
    def random(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, 32, 16, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    layouts = [
        Layout(1, 1, each, 1, context=2, config=LayoutConfig(context_method=ContextMethod.ring)) for each in (0, 1)
    ]
    own, others = own_tokens(32, layouts[rank]), own_tokens(32, layouts[1 - rank])
    whole = [random(heads).requires_grad_() for heads in (4, 2, 2)]
    gradient = random(4)
    gradient[:, :, others] = 0
    expected = attention(*whole, None)
    expected.backward(gradient)

    def on_device(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return x.detach()[:, :, tokens].to(device, dtype)

    theirs = torch.stack([on_device(x, others) for x in whole[1:]])
    passed: list[torch.Tensor] = []

    def pass_on(x: torch.Tensor) -> torch.Tensor:
        passed.append(x.clone())
        came = {3: torch.zeros_like(x), 4: passed[2]} if len(passed) > 2 else {1: theirs, 2: theirs}
        return came[len(passed)].flatten()

    parts = [on_device(x, own).requires_grad_() for x in whole]
    found = RingAttention.apply(*parts, rank, 2, pass_on)
    found.backward(on_device(gradient, own))

    def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        return float((ours.detach().double().cpu() - theirs.detach()).abs().max()) < limit

    assert close(found, expected[:, :, own])
    assert all(close(part.grad, x.grad[:, :, own]) for part, x in zip(parts, whole, strict=True))
    assert all(close(ours, x.grad[:, :, others]) for ours, x in zip(passed[3], whole[1:], strict=True))


def test_cuda_without_a_kernel_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config({"context": 2, "context_method": ContextMethod.ring}, {"precision": Precision.fp32})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"context_method=ring: flash .*precision=fp32; use .*all_gather"):
        check_ring(asked)
    asked.cluster.device = "cpu"
    check_ring(asked)
    assert why_no_ring(EngineConfig(precision=Precision.bf16).precision, 128) is None
    assert "not 12" in (why_no_ring(Precision.bf16, 12) or "")
