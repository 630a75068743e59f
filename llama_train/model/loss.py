"""Cross-entropy that never holds the logits of all tokens.

Shape suffixes are those of `llama.py`; N is B × S, C the tokens of one piece.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE = -100
"""A label that does not count."""


def summed_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (summed cross-entropy in nats, number of labels that are not `IGNORE`)."""
    wide_BSV = logits_BSV.to(compute_dtype(logits_BSV.dtype))
    loss = F.cross_entropy(wide_BSV.flatten(0, 1), labels_BS.flatten().long(), ignore_index=IGNORE, reduction="sum")
    return loss, (labels_BS != IGNORE).sum()


def chunked_loss(
    hidden_BSD: torch.Tensor, weight_VD: torch.Tensor, labels_BS: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `summed_loss(hidden @ weightᵀ, labels)` does, with the logits of `chunk` tokens at a time.

    The loss of a token does not depend on the others, so its gradient is known as soon as its logits are: the forward
    pass leaves the gradients of hidden states and weight, and the logits are made only once (as in Hsu et al. 2024,
    "Liger Kernel", section 3.2). The weight's gradient is summed up in float32 at least.

    Args:
        chunk: tokens, over all rows.
    """
    if not torch.is_grad_enabled():
        hidden_BSD, weight_VD = hidden_BSD.detach(), weight_VD.detach()
    loss = _ChunkedLoss.apply(hidden_BSD.flatten(0, 1), weight_VD, labels_BS.flatten(), chunk)
    return loss, (labels_BS != IGNORE).sum()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of what must not be computed in less than float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        wide = compute_dtype(hidden_ND.dtype)
        loss = torch.zeros((), dtype=wide, device=hidden_ND.device)
        hidden_needs, weight_needs = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden_ND) if hidden_needs else None
        weight_gradient = torch.zeros_like(weight_VD, dtype=wide) if weight_needs else None
        for first in range(0, len(labels_N), chunk):
            piece = slice(first, first + chunk)
            hidden_CD, labels_C = hidden_ND[piece], labels_N[piece].long()
            logs_CV = torch.log_softmax(hidden_CD @ weight_VD.T, dim=-1, dtype=wide)
            loss += F.nll_loss(logs_CV, labels_C, ignore_index=IGNORE, reduction="sum")
            if not (hidden_needs or weight_needs):
                continue
            gradient_CV = _gradient(logs_CV, labels_C).to(hidden_ND.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient_CV, weight_VD, out=hidden_gradient[piece])
            if weight_gradient is None:
                continue
            if weight_gradient.dtype == gradient_CV.dtype:
                weight_gradient.addmm_(gradient_CV.T, hidden_CD)
            else:
                weight_gradient += gradient_CV.T @ hidden_CD
        ctx.gradients = (hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        assert ctx.gradients is not None, "this loss has been through its backward pass"
        # Taken away: they are scaled in place, and a second backward pass must not find them.
        (hidden_gradient, weight_gradient), ctx.gradients = ctx.gradients, None
        if hidden_gradient is not None:
            hidden_gradient.mul_(gradient)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.mul_(gradient).to(ctx.weight_dtype)
        return hidden_gradient, weight_gradient, None, None


def _gradient(logs_CV: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
    """Turn log-probabilities in place into the gradient of the summed loss by the logits: probability − target."""
    gradient_CV = logs_CV.exp_()
    counts_C1 = (labels_C != IGNORE)[:, None]
    targets_C1 = labels_C.clamp(min=0)[:, None]
    gradient_CV.scatter_add_(1, targets_C1, -torch.ones_like(targets_C1, dtype=gradient_CV.dtype))
    return gradient_CV.mul_(counts_C1)
