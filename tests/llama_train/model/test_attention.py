"""Attention against a loop over heads and queries in float64."""

import pytest
import torch

from llama_train.model.attention import attention, document_mask


def by_hand(q, k, v, allowed):
    """Return what every query sees, one after the other. `allowed` is [B, S, S]."""
    q, k, v = q.double(), k.double(), v.double()
    result = torch.empty_like(q)
    share = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for position in range(q.shape[2]):
                seen = allowed[row, position].nonzero().flatten()
                keys, values = k[row, head // share, seen], v[row, head // share, seen]
                weights = torch.softmax(keys @ q[row, head, position] / q.shape[3] ** 0.5, 0)
                result[row, head, position] = weights @ values
    return result


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("masked", [True, False], ids=["documents", "causal"])
def test_attention_by_hand(dtype, tolerance, kv_heads, masked):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 11, 8, generator=generator).to(dtype)
    k, v = torch.randn(2, 2, kv_heads, 11, 8, generator=generator).to(dtype)
    ids = torch.tensor([[0] * 4 + [1] * 7, [0] * 10 + [1]]) if masked else torch.zeros(2, 11)
    causal = torch.arange(11)[:, None] >= torch.arange(11)
    allowed = causal & (ids[:, :, None] == ids[:, None, :])
    result = attention(q, k, v, document_mask(ids) if masked else None)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), by_hand(q, k, v, allowed), rtol=0, atol=tolerance)


def test_document_mask_by_hand():
    mask = document_mask(torch.tensor([[0, 0, 1, 1]]))
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]
