"""Attention against a loop over heads and queries in float64."""

import pytest
import torch

from llama_train.model.attention import (
    MASKS,
    Documents,
    _starts,
    attention,
    document_lengths,
    document_mask,
    flex_mask,
    sdpa_mask,
)


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


LENGTHS = ((23, 1, 40), (64,))
IDS = torch.tensor([[0] * 23 + [1] + [2] * 40, [0] * 64])


def tensors(dtype, device="cpu", kv_heads=2, size=16):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 64, size), (2, kv_heads, 64, size), (2, kv_heads, 64, size)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes]


def output_and_gradients(mask, q, k, v):
    output = attention(q, k, v, mask)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return output, *torch.autograd.grad((output * weights).sum(), (q, k, v))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_one_document_after_the_other_equals_the_dense_mask(kv_heads):
    q, k, v = tensors(torch.float64, kv_heads=kv_heads)
    allowed = document_mask(IDS)[:, 0]
    assert (attention(q, k, v, Documents(LENGTHS)) - by_hand(q, k, v, allowed)).abs().max() < 1e-13
    expected = output_and_gradients(document_mask(IDS), q, k, v)
    for ours, theirs in zip(output_and_gradients(Documents(LENGTHS), q, k, v), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_document_lengths_and_packed_starts_by_hand():
    assert document_lengths(IDS) == LENGTHS
    starts = _starts(IDS)
    assert starts.flatten().nonzero().flatten().tolist() == [0, 23, 24, 64]  # a row starts a document too


def test_long_documents_are_taken_one_by_one_and_short_ones_masked():
    long = torch.arange(2048)[None] // 512
    assert sdpa_mask(long, width=512) == Documents(((512,) * 4,))
    short = torch.arange(64)[None].expand(4, -1) // 4
    torch.testing.assert_close(sdpa_mask(short, width=64), document_mask(short))


def test_every_key_that_flex_attention_sees_is_one_of_the_dense_mask():
    # FlexAttention itself needs a compiler on the CPU; its mask does not.
    mask = flex_mask(IDS)
    row, query, key = torch.meshgrid(torch.arange(2), torch.arange(64), torch.arange(64), indexing="ij")
    torch.testing.assert_close(mask.mask_mod(row, 0, query, key), document_mask(IDS)[:, 0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", ["dense", "flex", "varlen"])
def test_backends_on_cuda_are_as_close_to_float64_as_bfloat16_allows(name, kv_heads):
    exact = output_and_gradients(document_mask(IDS), *tensors(torch.float64, kv_heads=kv_heads, size=64))
    ours = output_and_gradients(MASKS[name](IDS.cuda()), *tensors(torch.bfloat16, "cuda", kv_heads, size=64))
    for one, reference in zip(ours, exact, strict=True):
        scale = reference.abs().max()
        assert (one.cpu().double() - reference).abs().max() / scale < 2e-2  # bfloat16 keeps 8 bits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["dense", "flex"])
def test_float32_backends_on_cuda_equal_float64(name):
    exact = output_and_gradients(document_mask(IDS), *tensors(torch.float64, size=64))
    ours = output_and_gradients(MASKS[name](IDS.cuda()), *tensors(torch.float32, "cuda", size=64))
    for one, reference in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.cpu().double(), reference, rtol=0, atol=5e-3)  # TF32 matrix units: 10 bits
