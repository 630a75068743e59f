"""Attention over rows of documents behind one function: SDPA, FlexAttention or variable-length flash attention.

What a query may see is decided once per forward pass by a function of `MASKS` and shared by the layers; its type says
which kernel computes the attention. Shape suffixes are those of `llama.py`; T is B × S.
"""

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

_CALL = 800_000
"""What one more call of SDPA on a CPU costs, forward and backward, in units of one element of one head's query times
one key: 0.24 ms against 0.3 ns, measured in float32 on one core (torch 2.13)."""


@dataclass(frozen=True)
class Documents:
    """The lengths of the documents in each row: attention is computed for one document after the other."""

    lengths: tuple[tuple[int, ...], ...]


class Packed(NamedTuple):
    """Documents of all rows behind one another, for variable-length attention.

    A tuple, because torch.compile looks through those.
    """

    starts: torch.Tensor  # int32, one per document of all rows, and T at the end
    longest: int  # tokens that no document exceeds
    parameters: frozenset[str]  # of varlen_attn, which has more of them with every version of torch


Mask = torch.Tensor | Documents | Packed | Any | None
"""A bool tensor [B or 1, 1, S, keys], `Documents`, `Packed` or a FlexAttention BlockMask. None: causal, each row one
document."""


def attention(q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return softmax(q kᵀ / √E) v [B, H, S, E]; query head h reads key head h // (H / K).

    Args:
        mask: what a query may see. As a tensor, True where a query (row) may see a key (column).
    """
    if mask is None or isinstance(mask, torch.Tensor):
        return _sdpa(q_BHSE, k_BKSE, v_BKSE, mask)
    if isinstance(mask, Documents):
        return _one_after_the_other(q_BHSE, k_BKSE, v_BKSE, mask)
    if isinstance(mask, Packed):
        return _variable_length(q_BHSE, k_BKSE, v_BKSE, mask)
    return _flex(q_BHSE, k_BKSE, v_BKSE, mask)


def document_mask(document_ids_BS: torch.Tensor) -> torch.Tensor:
    """Return the mask [B, 1, S, S] that is True where a key is not later than its query and of the same document."""
    same_BSS = document_ids_BS[:, :, None] == document_ids_BS[:, None, :]
    return same_BSS.tril()[:, None]


def sdpa_mask(document_ids_BS: torch.Tensor, width: int) -> torch.Tensor | Documents:
    """Return what is faster for SDPA: the dense mask, or on a CPU one document after the other.

    Args:
        document_ids_BS: equal inside a document; its tokens are next to each other.
        width: elements of all query heads together.
    """
    rows, length = document_ids_BS.shape
    if document_ids_BS.device.type == "cpu":
        lengths = document_lengths(document_ids_BS)
        pairs = sum(tokens * tokens for row in lengths for tokens in row)
        # A causal call computes half of a document's pairs; a dense mask computes all of the row's.
        if sum(map(len, lengths)) * _CALL < width * (rows * length * length - pairs // 2):
            return Documents(lengths)
    return document_mask(document_ids_BS)


def flex_mask(document_ids_BS: torch.Tensor) -> Any:
    """Return the FlexAttention BlockMask that lets a query see its own document's keys up to itself."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (document_ids_BS[row, query] == document_ids_BS[row, key])

    rows, length = document_ids_BS.shape
    return create_block_mask(visible, rows, None, length, length, device=document_ids_BS.device)


def packed(document_ids_BS: torch.Tensor) -> Packed:
    """Return where documents start when the rows lie behind one another; a row's end ends its last document."""
    starts = _starts(document_ids_BS).flatten().nonzero().flatten()
    end = starts.new_full((1,), document_ids_BS.numel())
    # The row's length bounds every document. Their true maximum would be another transfer, and compiled again for
    # each of its values.
    return Packed(torch.cat([starts, end]).to(torch.int32), document_ids_BS.shape[1], _varlen_parameters())


def document_lengths(document_ids_BS: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    """Return for each row the tokens of each of its documents."""
    length = document_ids_BS.shape[1]
    lengths = []
    for row in _starts(document_ids_BS):
        begins = [*row.nonzero().flatten().tolist(), length]
        lengths.append(tuple(end - begin for begin, end in itertools.pairwise(begins)))
    return tuple(lengths)


MASKS: dict[str, Callable[[torch.Tensor], Mask]] = {
    "dense": document_mask,
    "flex": flex_mask,
    "varlen": packed,
}
"""Document ids to a mask that is the same for every shape; `sdpa_mask` chooses by shape."""


def _starts(document_ids_BS: torch.Tensor) -> torch.Tensor:
    starts_BS = torch.ones_like(document_ids_BS, dtype=torch.bool)
    starts_BS[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    return starts_BS


def _sdpa(
    q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask_B1SS: torch.Tensor | None
) -> torch.Tensor:
    causal = mask_B1SS is None
    # Of the fused CUDA kernels only flash shares key heads, and it takes neither masks nor float32. Elsewhere shared
    # heads would fall back to the kernel that writes out every weight, so they are repeated.
    shared = causal and q_BHSE.dtype in (torch.bfloat16, torch.float16)
    if not shared:
        k_BKSE, v_BKSE = repeated(k_BKSE, q_BHSE.shape[1]), repeated(v_BKSE, q_BHSE.shape[1])
    return F.scaled_dot_product_attention(
        q_BHSE, k_BKSE, v_BKSE, attn_mask=mask_B1SS, is_causal=causal, enable_gqa=shared
    )


def _one_after_the_other(
    q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Documents
) -> torch.Tensor:
    k_BHSE, v_BHSE = repeated(k_BKSE, q_BHSE.shape[1]), repeated(v_BKSE, q_BHSE.shape[1])
    rows = []
    for q_HSE, k_HSE, v_HSE, lengths in zip(q_BHSE, k_BHSE, v_BHSE, mask.lengths, strict=True):
        # Split once: the backward pass of a slice would write the whole row for every document.
        documents = zip(q_HSE.split(lengths, 1), k_HSE.split(lengths, 1), v_HSE.split(lengths, 1), strict=True)
        rows.append(torch.cat([_sdpa(q[None], k[None], v[None], None)[0] for q, k, v in documents], dim=1))
    return torch.stack(rows)


def _variable_length(q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Packed) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Causal attention is a window without a right side; the first version had a flag for it.
    arguments: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in mask.parameters else {"is_causal": True}
    if "enable_gqa" in mask.parameters:
        arguments["enable_gqa"] = q_BHSE.shape[1] != k_BKSE.shape[1]
    else:
        k_BKSE, v_BKSE = repeated(k_BKSE, q_BHSE.shape[1]), repeated(v_BKSE, q_BHSE.shape[1])
    q_THE, k_TKE, v_TKE = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHSE, k_BKSE, v_BKSE))
    attended_THE = varlen_attn(q_THE, k_TKE, v_TKE, mask.starts, mask.starts, mask.longest, mask.longest, **arguments)
    return attended_THE.unflatten(0, (q_BHSE.shape[0], -1)).transpose(1, 2)


def repeated(x_BKSE: torch.Tensor, heads: int) -> torch.Tensor:
    """Return [B, heads, S, E]: every key or value head as often as there are query heads that read it."""
    repeats = heads // x_BKSE.shape[1]
    return x_BKSE if repeats == 1 else x_BKSE.repeat_interleave(repeats, dim=1)


def _flex(q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Any) -> torch.Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # It is a kernel only when compiled; as it is, it writes out every weight.
    kernel = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    return kernel(q_BHSE, k_BKSE, v_BKSE, block_mask=mask, enable_gqa=q_BHSE.shape[1] != k_BKSE.shape[1])


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn  # late: it imports torch's compiler, which takes seconds

    return frozenset(inspect.signature(varlen_attn).parameters)


@functools.cache
def _compiled_flex_attention() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
