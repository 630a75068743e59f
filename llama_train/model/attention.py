"""Attention over rows of documents, on PyTorch's scaled_dot_product_attention.

Shape suffixes are those of `llama.py`.
"""

import torch
from torch.nn import functional as F


def attention(
    q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask_B1SS: torch.Tensor | None
) -> torch.Tensor:
    """Return softmax(q kᵀ / √E) v [B, H, S, E]; query head h reads key head h // (H / K).

    Args:
        mask_B1SS: bool, True where a query (row) may see a key (column). None: causal, the whole row one document.
    """
    causal = mask_B1SS is None
    # Of the fused CUDA kernels only flash shares key heads, and it takes neither masks nor float32. Elsewhere shared
    # heads would fall back to the kernel that writes out every weight, so they are repeated.
    shared = causal and q_BHSE.dtype in (torch.bfloat16, torch.float16)
    if not shared:
        repeats = q_BHSE.shape[1] // k_BKSE.shape[1]
        k_BKSE, v_BKSE = k_BKSE.repeat_interleave(repeats, dim=1), v_BKSE.repeat_interleave(repeats, dim=1)
    return F.scaled_dot_product_attention(
        q_BHSE, k_BKSE, v_BKSE, attn_mask=mask_B1SS, is_causal=causal, enable_gqa=shared
    )


def document_mask(document_ids_BS: torch.Tensor) -> torch.Tensor:
    """Return the mask [B, 1, S, S] that is True where a key is not later than its query and of the same document."""
    same_BSS = document_ids_BS[:, :, None] == document_ids_BS[:, None, :]
    return same_BSS.tril()[:, None]
