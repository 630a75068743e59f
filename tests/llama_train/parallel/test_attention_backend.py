"""What is asked for where it works, else SDPA with a word about it."""

import logging

import pytest
import torch

from llama_train.config import AttentionName, EngineConfig, ModelConfig, Precision
from llama_train.model.attention import document_mask
from llama_train.parallel.attention_backend import choose_attention, why_not

MODEL = ModelConfig("t", 101, 32, layers=1, heads=4, kv_heads=2, ffn_size=48, context=64)
IDS = torch.tensor([[0, 0, 1, 1]])


@pytest.mark.parametrize("name", ["flex", "varlen"])
def test_a_kernel_that_cannot_train_on_a_cpu_falls_back_to_sdpa_with_one_line(name, caplog):
    with caplog.at_level(logging.WARNING):
        make_mask = choose_attention(EngineConfig(attention=AttentionName[name]), MODEL, "cpu")
    (record,) = caplog.records
    assert f"engine.attention={name}: " in record.getMessage()
    assert "using engine.attention=sdpa" in record.getMessage()
    torch.testing.assert_close(make_mask(IDS), document_mask(IDS))


@pytest.mark.parametrize("name", ["auto", "sdpa"])
def test_auto_on_a_cpu_is_sdpa_without_a_word(name, caplog):
    make_mask = choose_attention(EngineConfig(attention=AttentionName[name]), MODEL, "cpu")
    torch.testing.assert_close(make_mask(IDS), document_mask(IDS))
    assert not caplog.records


def test_only_the_first_rank_speaks(caplog):
    choose_attention(EngineConfig(attention=AttentionName.flex), MODEL, "cpu", speaks=False)
    assert not caplog.records


def test_compiled_blocks_take_the_dense_mask():
    long = torch.arange(2048)[None] // 512
    assert not isinstance(choose_attention(EngineConfig(), MODEL, "cpu")(long), torch.Tensor)
    assert isinstance(choose_attention(EngineConfig(compile=True), MODEL, "cpu")(long), torch.Tensor)


@pytest.mark.parametrize(
    ("name", "precision", "head_dim", "reason"),
    [
        ("varlen", "fp32", 64, r"bfloat16, not in engine\.precision=fp32"),
        ("varlen", "bf16", 12, "heads of a multiple of 8 and at most 256 elements, not 12"),
        ("varlen", "bf16", 512, "not 512"),
        ("flex", "fp64", 64, "no float64"),
        ("flex", "bf16", 8, "at least 16 elements, not 8"),
    ],
)
def test_a_gpu_refuses_what_its_kernels_cannot(name, precision, head_dim, reason):
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why_not(AttentionName[name], Precision[precision], head_dim, "cuda"))


@pytest.mark.parametrize(("capability", "usable"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_varlen_needs_compute_capability_8(capability, usable, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")
    assert (why_not(AttentionName.varlen, Precision.bf16, 128, "cuda") is None) == usable
