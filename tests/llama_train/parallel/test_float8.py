"""float8 is refused by name wherever it cannot run."""

import importlib.util

import pytest
import torch

from llama_foundation.errors import ConfigError
from llama_train.config import EngineConfig, Float8, ModelConfig, Precision
from llama_train.model.llama import Llama
from llama_train.parallel.float8 import apply_float8, check_float8

MODEL = ModelConfig("t", 101, 64, layers=1, heads=4, kv_heads=2, ffn_size=96, context=64)
ASKED = EngineConfig(float8=Float8.tensorwise, precision=Precision.bf16)


def pretend(monkeypatch, capability, torchao=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if torchao else None)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_float8_without_cuda_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cpu")
    with pytest.raises(ConfigError, match=r"engine\.float8=tensorwise needs a CUDA device of compute capability 9\.0"):
        check_float8(ASKED, MODEL, device)


def test_float8_on_an_older_gpu_is_refused(monkeypatch):
    pretend(monkeypatch, (8, 0))
    with pytest.raises(ConfigError, match=r"A100 has 8\.0; use engine\.float8=none"):
        check_float8(ASKED, MODEL, "cuda")


def test_float8_without_torchao_is_refused(monkeypatch):
    pretend(monkeypatch, (9, 0), torchao=False)
    with pytest.raises(ConfigError, match=r"install llama-train\[float8\]"):
        check_float8(ASKED, MODEL, "auto")


def test_sizes_that_float8_cannot_multiply_are_refused(monkeypatch):
    pretend(monkeypatch, (9, 0))
    check_float8(ASKED, MODEL, "auto")
    odd = ModelConfig("t", 101, 64, layers=1, heads=4, kv_heads=2, ffn_size=100, context=64)
    with pytest.raises(ConfigError, match=r"model\.ffn_size gives matrices of 100"):
        check_float8(ASKED, odd, "auto")


def test_float8_outside_of_bf16_is_refused():
    with pytest.raises(ConfigError, match=r"engine\.precision=fp32; set engine\.precision=bf16"):
        EngineConfig(float8=Float8.rowwise).check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device of compute capability 9.0")
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_float8_is_near_bf16_and_keeps_names_and_weights(recipe):
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    plain = Llama(MODEL).to("cuda", torch.bfloat16)
    quantized = Llama(MODEL).to("cuda", torch.bfloat16)
    quantized.load_state_dict(plain.state_dict())
    apply_float8(quantized, EngineConfig(float8=Float8[recipe], precision=Precision.bf16))
    assert [name for name, _ in quantized.named_parameters()] == [name for name, _ in plain.named_parameters()]
    tokens = torch.randint(101, (2, 32), device="cuda")
    losses = [model(tokens, tokens)[0] / tokens.numel() for model in (plain, quantized)]
    losses[1].backward()
    assert abs(losses[0] - losses[1]) / losses[0] < 0.02
    assert losses[0] != losses[1]  # it did compute in float8
    assert all(parameter.grad is not None for parameter in quantized.parameters())
