"""Cross-entropy that never holds the logits of all tokens.

Shape suffixes are those of `llama.py`; N is B × S, C the tokens of one piece.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE = -100
"""A label that does not count."""

_CPU_PIECE = 256
"""Tokens of a piece on a CPU, at most: the logits of more leave its caches. Loss and gradients of 2048 tokens, V = 4096
and D = 192, take 59 ms of one core in place of 77; V = 32,000 and D = 288, 720 in place of 891 (float32, torch 2.13)."""


def summed_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (summed cross-entropy in nats, number of labels that are not `IGNORE`)."""
    wide_BSV = logits_BSV.to(compute_dtype(logits_BSV.dtype))
    loss = F.cross_entropy(wide_BSV.flatten(0, 1), labels_BS.flatten().long(), ignore_index=IGNORE, reduction="sum")
    return loss, (labels_BS != IGNORE).sum()


def chunked_loss(
    hidden_BSD: torch.Tensor, weight_VD: torch.Tensor, labels_BS: torch.Tensor, chunk: int, twice: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `summed_loss(hidden @ weightᵀ, labels)` does, with the logits of `chunk` tokens at a time.

    The loss of a token does not depend on the others, so its gradient is known as soon as its logits are: the forward
    pass leaves the gradients of hidden states and weight, and the logits are made only once (as in Hsu et al. 2024,
    "Liger Kernel", section 3.2). The weight's gradient is summed up in float32 at least.

    Args:
        chunk: tokens, over all rows.
        twice: whether the backward pass comes in two halves, first for the hidden states, then for the weight.
    """
    if not torch.is_grad_enabled():
        hidden_BSD, weight_VD = hidden_BSD.detach(), weight_VD.detach()
    loss = _ChunkedLoss.apply(hidden_BSD.flatten(0, 1), weight_VD, labels_BS.flatten(), chunk, twice)
    return loss, (labels_BS != IGNORE).sum()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of what must not be computed in less than float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
        chunk: int,
        twice: bool,
    ) -> torch.Tensor:
        wide = compute_dtype(hidden_ND.dtype)
        loss = torch.zeros((), dtype=wide, device=hidden_ND.device)
        hidden_needs, weight_needs = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden_ND) if hidden_needs else None
        weight_gradient = torch.zeros_like(weight_VD, dtype=wide) if weight_needs else None
        if hidden_ND.device.type == "cpu":
            chunk = min(chunk, _CPU_PIECE)
        for first in range(0, len(labels_N), chunk):
            piece = slice(first, first + chunk)
            hidden_CD, labels_C1 = hidden_ND[piece], labels_N[piece, None].long()
            counts_C1, targets_C1 = labels_C1 != IGNORE, labels_C1.clamp(min=0)
            shifted_CV = (hidden_CD @ weight_VD.T).to(wide)
            shifted_CV -= shifted_CV.amax(-1, keepdim=True)
            target_C1 = shifted_CV.gather(1, targets_C1)
            exponentials_CV = shifted_CV.exp_()  # once: log-probabilities would have to be raised to e again below
            sums_C1 = exponentials_CV.sum(-1, keepdim=True)
            loss += ((sums_C1.log() - target_C1) * counts_C1).sum()
            if not (hidden_needs or weight_needs):
                continue
            # The gradient by the logits is probability − target.
            gradient_CV = exponentials_CV.mul_(counts_C1 / sums_C1)
            gradient_CV = gradient_CV.scatter_add_(1, targets_C1, -counts_C1.to(wide)).to(hidden_ND.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient_CV, weight_VD, out=hidden_gradient[piece])
            if weight_gradient is None:
                continue
            if weight_gradient.dtype == gradient_CV.dtype:
                weight_gradient.addmm_(gradient_CV.T, hidden_CD)
            else:
                weight_gradient += gradient_CV.T @ hidden_CD
        ctx.gradients = KeptGradients(hidden_gradient, weight_gradient, weight_VD.dtype, halves=2 if twice else 1)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.gradients.scaled(gradient), None, None, None


class KeptGradients:
    """Gradients that a forward pass has computed, until the backward pass takes them, in one go or in two halves."""

    def __init__(
        self,
        hidden: torch.Tensor | None,
        weight: torch.Tensor | None,
        weight_dtype: torch.dtype,
        halves: int,
    ) -> None:
        self._kept: tuple[torch.Tensor | None, torch.Tensor | None] | None = (hidden, weight)
        self._weight_dtype = weight_dtype
        self._halves = halves
        self._scaled = False

    def scaled(self, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return both gradients times `gradient`, the same in both halves; they are gone after the last one."""
        assert self._kept is not None, "this loss has been through its backward pass"
        hidden, weight = self._kept
        if not self._scaled:
            hidden = hidden if hidden is None else hidden.mul_(gradient)
            weight = weight if weight is None else weight.mul_(gradient).to(self._weight_dtype)
        self._scaled = True
        self._halves -= 1
        self._kept = (hidden, weight) if self._halves else None
        return hidden, weight
