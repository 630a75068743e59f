"""Sizes against PyTorch's own counters and arithmetic by hand. Published counts are in tests/configs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llama_train.config import ModelConfig
from llama_train.model.llama import Llama
from llama_train.model.size import (
    MFU_FORMULAS,
    causal_attention,
    forward_flops,
    full_attention,
    model_flops_utilization,
    non_embedding_parameters,
    palm_full_attention,
    parameter_count,
    training_bytes,
)

CONFIG = ModelConfig("small", 40, 24, layers=2, heads=4, kv_heads=2, ffn_size=36, context=16)
TIED = ModelConfig("tied", 40, 24, layers=2, heads=4, kv_heads=4, ffn_size=36, context=16, tied_embeddings=True)
LLAMA1_65B = ModelConfig("65b", 32000, 8192, layers=80, heads=64, kv_heads=64, ffn_size=22016, context=2048)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_parameters_are_those_of_the_module(config):
    model = Llama(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    assert non_embedding_parameters(config) == blocks + config.hidden_size


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_forward_operations_are_those_that_pytorch_counts(config):
    length = 12
    counter = FlopCounterMode(display=False)
    ids = torch.zeros(1, length, dtype=torch.int64)  # a mask, so that the kernel has no causal short cut to count
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        Llama(config)(torch.zeros(1, length, dtype=torch.int64), document_ids=ids)
    flops = forward_flops(config, length)
    assert counter.get_total_flops() == length * (flops.matmul + flops.attention_full)


def test_training_operations_are_three_forward_passes():
    flops = forward_flops(CONFIG, 12)
    assert full_attention(CONFIG, 12) == 3 * (flops.matmul + flops.attention_full)
    # By hand: 2 layers, 4 operations per element of 24 and key, on average 6.5 keys of 12.
    assert flops.attention_causal == 2 * 4 * 24 * 6.5
    assert causal_attention(CONFIG, 12) == full_attention(CONFIG, 12) - 3 * 2 * 4 * 24 * (12 - 6.5)


def test_palm_formula_by_hand():
    # LLaMA 65B: 65,285,660,672 parameters, 262,144,000 of them looked up; 80 layers, 64 heads of 128, 2048 tokens.
    expected = 6 * (65_285_660_672 - 262_144_000) + 12 * 80 * 64 * 128 * 2048
    assert palm_full_attention(LLAMA1_65B, 2048) == expected


def test_utilization_of_the_llama_paper():
    # Section 2.4: 380 tokens per second on a GPU of 312 TFLOP/s; 48.5 % of causal operations, worked out by hand:
    # 6 * 65.02e9 + 6 * 80 * 8192 * 2049 = 398.2e9 operations per token.
    used = model_flops_utilization(380, 312e12, LLAMA1_65B, 2048, "causal_attention")
    assert used == pytest.approx(0.485, abs=5e-4)
    names = ["causal_attention", "full_attention", "palm_full_attention"]
    assert sorted(MFU_FORMULAS) == names
    assert sorted(names, key=lambda name: MFU_FORMULAS[name](LLAMA1_65B, 2048)) == names


def test_bytes_of_training():
    count = training_bytes(LLAMA1_65B)
    assert count.total == 16 * 65_285_660_672
    assert count.checkpoint == 12 * 65_285_660_672
    assert training_bytes(LLAMA1_65B, 8).weights == 8 * 65_285_660_672
