"""Ring attention (Liu et al. 2023): K and V travel around the context ranks while each computes its own queries.

Sequences are cut head to tail, as for the all-gather: rank i of c holds pieces i and 2c-1-i. Of the tokens of rank j
its queries see

    j = i   all, causally
    j < i   the first piece, whole: the second is later than both of its own
    j > i   both pieces, whole, with its second piece; nothing with its first

so every hop but the first is the same work. A fused kernel gives for each hop softmax(q kᵀ) v over those keys and the
logarithm of the softmax's denominator, with which hops are put together:

    l = log(exp(l₁) + exp(l₂)),  o = o₁ exp(l₁ - l) + o₂ exp(l₂ - l)

The backward kernels take the whole row's o and l, so that each hop's gradients are summands; those of K and V travel
on with their keys until they are home. No rank ever holds more than two ranks' K and V.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from llama_foundation.errors import ConfigError
from llama_train.config import ContextMethod, Precision, TrainConfig
from llama_train.model.attention import Mask, repeated
from llama_train.parallel.collectives import arrived, passed_on

WHOLE = slice(None)

Saved = tuple[Any, ...]


def check_ring(config: TrainConfig) -> None:
    """Refuse ring attention on devices without a kernel that it can use; layouts are checked by `resolve_layout`.

    Raises:
        ConfigError: CUDA and another precision than bf16, or heads that flash attention does not take.
    """
    layout, device = config.layout, config.cluster.device
    if layout.context == 1 or layout.context_method is not ContextMethod.ring:
        return
    if device != "cpu" and torch.cuda.is_available():
        reason = why_no_ring(config.engine.precision, config.model.head_dim)
        if reason is not None:
            raise ConfigError(f"layout.context_method=ring: {reason}; use layout.context_method=all_gather")


def why_no_ring(precision: Precision, head_dim: int) -> str | None:
    """Return why no CUDA kernel gives what the ring needs, None where one does."""
    if precision is not Precision.bf16:
        return f"flash attention on CUDA computes in bfloat16, not in engine.precision={precision.name}"
    if head_dim % 8 or head_dim > 256:
        return f"flash attention on CUDA needs heads of a multiple of 8 and at most 256 elements, not {head_dim}"
    return None


class Ring:
    """Causal attention of this rank's queries to the keys of all ranks of `group`."""

    def __init__(self, size: int, rank: int, group: dist.ProcessGroup) -> None:
        self.size = size
        self.rank = rank
        self.group = group

    def __call__(self, q_BHSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, mask: Mask) -> torch.Tensor:
        assert mask is None, "document masks are refused with this method"

        def pass_on(x: torch.Tensor) -> torch.Tensor:
            return passed_on(x, self.group, self.size)

        return RingAttention.apply(q_BHSE, k_BKSE, v_BKSE, self.rank, self.size, pass_on)


class RingAttention(torch.autograd.Function):
    """The hops of one rank. `pass_on` begins to send a tensor to the next rank; `arrived` waits for the last one's."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHSE: torch.Tensor,
        k_BKSE: torch.Tensor,
        v_BKSE: torch.Tensor,
        rank: int,
        size: int,
        pass_on: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        ctx.place = rank, size, pass_on
        out, denominator, random = None, None, ()
        q_BHSE, keys_values = q_BHSE.contiguous(), torch.stack([k_BKSE, v_BKSE])
        for hop, queries, _, k, v in _around(keys_values, ctx.place, q_BHSE):
            part, part_denominator, random = _forward_kernel(q_BHSE[:, :, queries], k, v, causal=hop == 0)
            part = part.to(part_denominator.dtype)
            if out is None or denominator is None:
                out, denominator = part, part_denominator
            else:
                out, denominator = _put_together(out, denominator, part, part_denominator, queries)
        assert out is not None and denominator is not None
        out = out.to(q_BHSE.dtype)
        ctx.save_for_backward(
            q_BHSE, keys_values, out, denominator, *(x for x in random if isinstance(x, torch.Tensor))
        )
        return out

    @staticmethod
    def backward(ctx: Any, gradient_BHSE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pass_on = ctx.place[2]
        q_BHSE, keys_values, out, denominator, *random = ctx.saved_tensors
        gradient_BHSE = gradient_BHSE.contiguous()
        q_gradient = torch.zeros_like(q_BHSE, dtype=denominator.dtype)
        coming_gradient = torch.zeros_like(keys_values, dtype=denominator.dtype)
        for hop, queries, keys, k, v in _around(keys_values, ctx.place, q_BHSE):
            of_q, of_k, of_v = _backward_kernel(
                *(x[:, :, queries].contiguous() for x in (gradient_BHSE, q_BHSE)),
                k,
                v,
                out[:, :, queries].contiguous(),
                denominator[:, :, queries],
                random,
                causal=hop == 0,
            )
            q_gradient[:, :, queries] += of_q
            # The sum of this keys' gradients so far has travelled meanwhile.
            keys_gradient = coming_gradient if hop == 0 else arrived(coming_gradient, keys_values.shape)
            shared = torch.stack([of_k, of_v]).to(denominator.dtype).unflatten(2, (keys_values.shape[2], -1)).sum(3)
            keys_gradient[:, :, :, keys] += shared
            coming_gradient = pass_on(keys_gradient)
        of_k, of_v = arrived(coming_gradient, keys_values.shape).to(q_BHSE.dtype)
        return q_gradient.to(q_BHSE.dtype), of_k, of_v, None, None, None


def _around(
    own: torch.Tensor, place: tuple[int, int, Callable[[torch.Tensor], torch.Tensor]], q_BHSE: torch.Tensor
) -> Iterator[tuple[int, slice, slice, torch.Tensor, torch.Tensor]]:
    """Yield for every hop its number, which queries see which keys, and those K and V for every head.

    What the next hop needs is on its way before a hop is yielded.

    Args:
        own: K and V of this rank, stacked.
        place: rank, ranks, and what passes a tensor on to the next one.
    """
    rank, size, pass_on = place
    coming = own
    for hop in range(size):
        keys_values = coming if hop == 0 else arrived(coming, own.shape)
        if hop + 1 < size:
            coming = pass_on(keys_values)
        queries, keys = _visible(rank, (rank - hop) % size, q_BHSE.shape[2])
        yield hop, queries, keys, *_heads(keys_values[:, :, :, keys], q_BHSE.shape[1])


def _visible(rank: int, other: int, length: int) -> tuple[slice, slice]:
    """Return which of a rank's queries see which keys of another rank; of its own ones they see what is causal."""
    half = length // 2
    if other == rank:
        return WHOLE, WHOLE
    return (WHOLE, slice(0, half)) if other < rank else (slice(half, length), WHOLE)


def _heads(keys_values: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    k_BKSE, v_BKSE = keys_values
    return repeated(k_BKSE, heads).contiguous(), repeated(v_BKSE, heads).contiguous()


def _put_together(
    out: torch.Tensor, denominator: torch.Tensor, part: torch.Tensor, part_denominator: torch.Tensor, queries: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention of `queries` to both sets of keys; others keep theirs. Nothing is written in place."""
    before, before_denominator = out[:, :, queries], denominator[:, :, queries]
    both = torch.logaddexp(before_denominator, part_denominator)
    new = before * (before_denominator - both).exp()[..., None] + part * (part_denominator - both).exp()[..., None]
    if queries == WHOLE:
        return new, both
    first = slice(0, queries.start)
    return torch.cat([out[:, :, first], new], 2), torch.cat([denominator[:, :, first], both], 2)


def _forward_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor, Saved]:
    """Return attention [B, H, S, E], the logarithm of its denominators [B, H, S], and the state of random numbers."""
    if not q.is_cuda:
        out, denominator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return out, denominator, ()
    out, denominator, _, _, _, _, seed, offset, _ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, causal, False
    )
    return out, denominator, (seed, offset)


def _backward_kernel(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    denominator: torch.Tensor,
    random: Saved,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v; `out` and `denominator` are those of the whole row."""
    if not q.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, denominator, 0.0, causal
        )
    lengths = q.shape[2], k.shape[2]
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        gradient, q, k, v, out, denominator.contiguous(), None, None, *lengths, 0.0, causal, *random
    )
