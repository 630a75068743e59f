"""Context parallelism: a sequence is cut over ranks, and attention sees all of it.

Everything but attention works on single tokens, so each rank takes its own through the model, and FSDP2 sums the
gradients of all. For attention there are three ways:

- all-gather (Llama Team 2024, section 3.3.2): every rank gathers K and V and computes its own queries. A causal query
  sees the more keys the later it is, so a sequence is cut into 2c pieces and rank i gets pieces i and 2c-1-i.
- Ulysses (Jacobs et al. 2023): an all-to-all gives every rank all tokens of some heads; another gives them back.
- ring (`ring.py`): K and V travel from rank to rank, of sequences cut as for the all-gather.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn import functional as F

from llama_train.config import ContextMethod
from llama_train.model.attention import Mask, attention, repeated
from llama_train.model.llama import Llama
from llama_train.parallel.collectives import exchanged, gathered
from llama_train.parallel.layout import Layout
from llama_train.parallel.ring import Ring


def own_tokens(length: int, layout: Layout, rank: int | None = None) -> torch.Tensor:
    """Return the indices in a sequence of `length` that a context rank computes, int64 [length / context], ascending.

    Args:
        rank: along the context axis; None: this process'.
    """
    size, rank = layout.context, layout.place["context"] if rank is None else rank
    if layout.config.context_method is ContextMethod.ulysses:
        return torch.arange(length).chunk(size)[rank]
    pieces = torch.arange(length).chunk(2 * size)
    return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]])


def apply_context_parallel(model: Llama, layout: Layout, group: dist.ProcessGroup | None) -> None:
    """Make the attention of `model` see the tokens of the other ranks, in place.

    From then on the model takes this rank's tokens, labels and positions, but the document ids of whole sequences.
    """
    if group is None:
        return
    if layout.config.context_method is ContextMethod.ulysses:
        attend: Callable[..., torch.Tensor] = _Ulysses(layout.context, group)
    elif layout.config.context_method is ContextMethod.ring:
        attend = Ring(layout.context, layout.place["context"], group)
    else:
        all_keys = _AllGather(layout, group)
        attend = all_keys
        model.model.make_mask = all_keys.mask
    for block in model.blocks():
        block.self_attn.attend = attend


class _AllGather:
    """Queries of this rank's two pieces against the keys of all ranks."""

    def __init__(self, layout: Layout, group: dist.ProcessGroup) -> None:
        self.layout = layout
        self.group = group

    def mask(self, document_ids_BS: torch.Tensor) -> torch.Tensor:
        """Return the mask [B, 1, own, S] of a whole sequence's document ids for this rank's queries."""
        own = own_tokens(document_ids_BS.shape[1], self.layout).to(document_ids_BS.device)
        keys = torch.arange(document_ids_BS.shape[1], device=document_ids_BS.device)
        same = document_ids_BS[:, own, None] == document_ids_BS[:, None, :]
        return (same & (own[:, None] >= keys[None, :]))[:, None]

    def __call__(self, q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Mask) -> torch.Tensor:
        k_BKSE, v_BKSE = self._gathered(k_BKSE), self._gathered(v_BKSE)
        if mask is not None:
            return attention(q_BHSE, k_BKSE, v_BKSE, mask)
        length, size, rank = k_BKSE.shape[2], self.layout.context, self.layout.place["context"]
        piece = length // (2 * size)
        attended = []
        for number, q_BHPE in zip((rank, 2 * size - 1 - rank), q_BHSE.chunk(2, dim=2), strict=True):
            end = (number + 1) * piece
            attended.append(_causal_to_the_end(q_BHPE, k_BKSE[:, :, :end], v_BKSE[:, :, :end]))
        return torch.cat(attended, dim=2)

    def _gathered(self, x_BKSE: torch.Tensor) -> torch.Tensor:
        """Return all tokens in their order from the pieces of every rank: 0, 2c-1, then 1, 2c-2, ..."""
        pieces = gathered(x_BKSE, 2, self.group).chunk(2 * self.layout.context, dim=2)
        return torch.cat([*pieces[0::2], *reversed(pieces[1::2])], dim=2)


def _causal_to_the_end(q_BHPE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor) -> torch.Tensor:
    """Attend causally with queries that are the last ones of the keys' sequence."""
    from torch.nn.attention.bias import causal_lower_right

    heads = q_BHPE.shape[1]
    bias = causal_lower_right(q_BHPE.shape[2], k_BKSE.shape[2])
    return F.scaled_dot_product_attention(q_BHPE, repeated(k_BKSE, heads), repeated(v_BKSE, heads), attn_mask=bias)


class _Ulysses:
    """All tokens of this rank's share of the heads."""

    def __init__(self, size: int, group: dist.ProcessGroup) -> None:
        self.size = size
        self.group = group

    def __call__(self, q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Mask) -> torch.Tensor:
        q, k, v = (self._exchanged(x, split=1, join=2) for x in (q_BHSE, k_BKSE, v_BKSE))
        return self._exchanged(attention(q, k, v, mask), split=2, join=1)

    def _exchanged(self, x: torch.Tensor, split: int, join: int) -> torch.Tensor:
        """Send piece i of dimension `split` to rank i, and join what comes along `join`."""
        sent = torch.cat([piece.contiguous().flatten() for piece in x.chunk(self.size, dim=split)])
        shape = list(x.shape)
        shape[split] //= self.size
        received = exchanged(sent, self.group, self.size)
        return torch.cat([piece.view(shape) for piece in received.chunk(self.size)], dim=join)
