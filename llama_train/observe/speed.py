"""How fast and how large: peak speeds of devices, utilization, memory."""

import resource
import sys
from typing import Any

PEAK_TFLOPS: dict[str, float] = {
    "H200 NVL": 835.5,  # NVIDIA H200 datasheet (2024): 1,671 with sparsity
    "H200": 989.0,  # NVIDIA H200 datasheet (2024): 1,979 with sparsity
    "H100 NVL": 835.5,  # NVIDIA H100 NVL datasheet (2024): 1,671 with sparsity
    "H100 PCIe": 756.5,  # NVIDIA H100 datasheet (2022): 1,513 with sparsity
    "H100": 989.0,  # SXM5; NVIDIA H100 datasheet (2022): 1,979 with sparsity
    "A100": 312.0,  # NVIDIA A100 datasheet (2021), SXM4 and PCIe alike
    "L40S": 362.05,  # NVIDIA L40S datasheet (2023): 733 with sparsity
}
"""Dense bf16 TFLOP/s by a part of the device's name; the first entry that fits counts."""


def peak_tflops(device_name: str, configured: float | None = None) -> float | None:
    """Return the dense bf16 peak of one device in TFLOP/s, or None where nobody knows it.

    Args:
        device_name: `torch.cuda.get_device_name()`, or "cpu".
        configured: `cluster.peak_tflops`; it wins over the table.
    """
    if configured is not None:
        return configured
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device_name), None)


def utilization(tokens_per_second_per_device: float, flops_per_token: float, peak: float | None) -> float | None:
    """Return the model FLOPs utilization (Chowdhery and others 2022, PaLM, appendix B) as a fraction.

    Args:
        flops_per_token: of the forward and backward pass, by whatever formula the caller names.
        peak: TFLOP/s of one device; None gives None.
    """
    return None if peak is None else tokens_per_second_per_device * flops_per_token / (peak * 1e12)


def memory_bytes(device: Any) -> int:
    """Return the peak memory of this process so far: allocated on a CUDA device, resident elsewhere.

    Args:
        device: a `torch.device`.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
