"""Activation checkpointing: the same gradients, and exactly the recomputation that was asked for."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llama_train.config import ActivationCheckpointing, EngineConfig, ModelConfig
from llama_train.model.initialize import initialize
from llama_train.model.llama import Llama
from llama_train.parallel.activations import checkpoint_activations

LAYERS = 5
CONFIG = ModelConfig("t", 101, 32, layers=LAYERS, heads=4, kv_heads=2, ffn_size=48, context=64)
BLOCK_MATMULS = 7
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.calls[operation._schema.name] += 1
        return operation(*arguments, **(keywords or {}))


def backward(mode: ActivationCheckpointing, every: int = 2) -> tuple[Counter[str], list[torch.Tensor]]:
    """Return what the backward pass computed, and the gradients."""
    model = Llama(CONFIG).double()
    initialize(model, CONFIG, seed=0)
    settings = EngineConfig(activation_checkpointing=mode, activation_checkpointing_every=every)
    checkpoint_activations(model, settings)
    tokens = torch.randint(101, (2, 24), generator=torch.Generator().manual_seed(0))
    loss, _ = model(tokens, tokens)
    with Counted() as counted:
        loss.backward()
    return counted.calls, [parameter.grad for parameter in model.parameters()]


@pytest.fixture(scope="module")
def plain() -> tuple[Counter[str], list[torch.Tensor]]:
    return backward(ActivationCheckpointing.none)


@pytest.mark.parametrize(
    ("mode", "every", "blocks_again"),
    [("full", 1, LAYERS), ("every_n", 2, 3), ("every_n", 3, 2), ("every_n", 9, 1)],
)
def test_whole_blocks_are_computed_again(mode, every, blocks_again, plain):
    calls, gradients = backward(ActivationCheckpointing[mode], every)
    again = calls["aten::mm"] - plain[0]["aten::mm"]
    # The last one, down_proj, is not: nothing reads its result again.
    assert again in (blocks_again * BLOCK_MATMULS, blocks_again * (BLOCK_MATMULS - 1))
    assert calls[ATTENTION] == blocks_again
    for one, other in zip(gradients, plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_selective_computes_everything_again_but_matrix_products_and_attention(plain):
    calls, gradients = backward(ActivationCheckpointing.selective)
    assert calls["aten::mm"] == plain[0]["aten::mm"]
    assert calls[ATTENTION] == 0
    assert calls["aten::silu"] == LAYERS and plain[0]["aten::silu"] == 0
    for one, other in zip(gradients, plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
