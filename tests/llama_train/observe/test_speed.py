import re
from pathlib import Path

import pytest
import torch

from llama_train.observe.speed import memory_bytes, peak_tflops, utilization


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_those_of_the_datasheets_and_unknown_devices_have_none(device, peak):
    assert peak_tflops(device) == peak


def test_the_configured_peak_wins():
    assert peak_tflops("NVIDIA H200", 100.0) == 100.0
    assert peak_tflops("cpu", 0.5) == 0.5


def test_utilization_by_hand():
    # PaLM 540B, Chowdhery and others 2022, appendix B: 238.3K tokens/s on 6,144 chips of 275 TFLOP/s, 6N FLOPs: 45.7 %
    assert utilization(238_300 / 6144, 6 * 540.35e9, 275.0) == pytest.approx(0.457, abs=5e-4)
    assert utilization(1000.0, 1e9, None) is None


def test_memory_on_cpu_is_the_peak_that_the_kernel_counted():
    held = b"\1" * (64 << 20)
    status = Path("/proc/self/status").read_text()
    kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
    assert memory_bytes(torch.device("cpu")) == pytest.approx(kilobytes * 1024, rel=0.05)
    assert kilobytes * 1024 > len(held)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_cuda_is_the_peak():
    torch.cuda.reset_peak_memory_stats()
    before = memory_bytes(torch.device("cuda"))
    held = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    assert memory_bytes(torch.device("cuda")) >= before + 0.9 * held.numel()
