"""The ring's hops put together are causal attention over the whole sequence."""

import pytest
import torch

from llama_foundation.errors import ConfigError
from llama_train.config import ContextMethod, EngineConfig, Precision
from llama_train.parallel.ring import check_ring, why_no_ring
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


def test_cuda_without_a_kernel_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config({"context": 2, "context_method": ContextMethod.ring}, {"precision": Precision.fp32})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"context_method=ring: flash .*precision=fp32; use .*all_gather"):
        check_ring(asked)
    asked.cluster.device = "cpu"
    check_ring(asked)
    assert why_no_ring(EngineConfig(precision=Precision.bf16).precision, 128) is None
    assert "not 12" in (why_no_ring(Precision.bf16, 12) or "")
