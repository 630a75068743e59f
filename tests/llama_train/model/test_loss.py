"""The chunked loss against cross-entropy over all logits, and what it holds while it runs."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llama_train.config import ModelConfig
from llama_train.model.initialize import initialize
from llama_train.model.llama import IGNORE, Llama
from llama_train.model.loss import chunked_loss


def inputs(dtype, tokens=37):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, tokens, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(53, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(53, (2, tokens), generator=generator)
    labels[0, 3:9] = IGNORE
    labels[1, -1] = IGNORE
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def whole(hidden, weight, labels):
    """Return loss and gradients as autograd makes them from all logits, in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss, *torch.autograd.grad(loss / 66, (hidden, weight))


@pytest.mark.parametrize("chunk", [1, 7, 37, 74, 1000])
def test_chunked_loss_and_gradients_equal_the_whole_in_float64(chunk):
    hidden, weight, labels = inputs(torch.float64)
    expected = whole(hidden, weight, labels)
    loss, count = chunked_loss(hidden, weight, labels.int(), chunk)  # the loader makes int32
    assert count == 2 * 37 - 7
    ours = (loss, *torch.autograd.grad(loss / 66, (hidden, weight)))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-12)


def test_bf16_weight_gradients_are_summed_in_float32():
    # Pieces of one token: a sum in bfloat16, of 8 bits, over 4096 of them would stop growing at a fraction of it.
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss, _ = chunked_loss(hidden, weight, torch.zeros(1, 4096, dtype=torch.int64), 1)
    loss.backward()
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [-2048, 2048]
    assert loss.dtype == torch.float32


def test_a_batch_without_labels_has_loss_and_gradients_0():
    hidden, weight, labels = inputs(torch.float32)
    loss, count = chunked_loss(hidden, weight, torch.full_like(labels, IGNORE), 8)
    loss.backward()
    assert loss == 0 and count == 0
    assert hidden.grad.abs().max() == 0 and weight.grad.abs().max() == 0


def test_a_second_backward_pass_is_refused():
    loss, _ = chunked_loss(*inputs(torch.float32), 8)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="has been through its backward pass"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.operations: set[str] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        self.operations.add(operation._schema.name)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_chunks_has_the_same_gradients_and_never_the_whole_logits(tied):
    config = ModelConfig("t", 509, 16, layers=1, heads=2, kv_heads=1, ffn_size=24, context=64, tied_embeddings=tied)
    tokens = torch.randint(509, (4, 64), generator=torch.Generator().manual_seed(1))
    gradients, largest = [], []
    for chunk in (0, 32):
        model = Llama(config).double()
        initialize(model, config, seed=0)
        model.loss_chunk = chunk
        with Largest() as made:
            loss, _ = model(tokens, tokens)
            (loss / 256).backward()
        largest.append(made.elements)
        gradients.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-12)
    assert largest[0] == 256 * 509
    assert largest[1] <= 32 * 509  # the logits of one piece


@torch.no_grad()
def test_without_gradients_none_are_made():
    hidden, weight, labels = inputs(torch.float32)
    with Largest() as made:
        loss, _ = chunked_loss(hidden, weight, labels, 4)
    assert "aten::exp_" in made.operations
    assert not made.operations & {"aten::scatter_add_", "aten::addmm_", "aten::zeros_like"}
    torch.testing.assert_close(loss.double(), whole_loss(hidden, weight, labels), rtol=1e-6, atol=0)


def whole_loss(hidden, weight, labels):
    logits = (hidden @ weight.T).flatten(0, 1).double()
    return F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
