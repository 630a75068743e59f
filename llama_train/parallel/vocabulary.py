"""The embedding, the head and the loss, with the vocabulary cut over the tensor ranks (Shoeybi et al. 2019, section 3).

A vocabulary that does not divide is filled up with rows that no token has: they are zero, no lookup reads them, and
they are left out of every sum, so nothing changes.

Shape suffixes are those of `llama.py`; V here is this rank's part, N is B × S, C the tokens of one piece.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llama_train.model.loss import IGNORE, KeptGradients, compute_dtype
from llama_train.parallel.collectives import gathered_without_gradient, reduced


def padded_vocabulary(size: int, ranks: int) -> int:
    """Return the next multiple of `ranks`."""
    return -(-size // ranks) * ranks


@dataclass(frozen=True)
class VocabularyParallel:
    """What one of `ranks` tensor ranks does with its rows of the vocabulary."""

    size: int  # of the whole vocabulary, unpadded
    rank: int
    ranks: int
    group: dist.ProcessGroup

    @property
    def first(self) -> int:
        """The token id of this rank's first row."""
        return self.rank * (padded_vocabulary(self.size, self.ranks) // self.ranks)

    def embed(self, tokens_BS: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, S, D] of the tokens in this rank's part, and zero for the others: a summand."""
        own_BS = tokens_BS - self.first
        inside_BS = (own_BS >= 0) & (own_BS < weight_VD.shape[0])
        return F.embedding(own_BS.where(inside_BS, 0), weight_VD) * inside_BS[..., None]

    def logits(self, hidden_BSD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Return the logits of the whole vocabulary, on every rank; without gradients."""
        own_BSV = F.linear(hidden_BSD, weight_VD).detach()
        return gathered_without_gradient(own_BSV, 2, self.group)[..., : self.size]

    def loss(
        self, hidden_BSD: torch.Tensor, weight_VD: torch.Tensor, labels_BS: torch.Tensor, chunk: int, twice: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (summed cross-entropy in nats, number of labels that count), the same on every rank.

        The gradient of `hidden_BSD` is a summand over the ranks.
        """
        if not torch.is_grad_enabled():
            hidden_BSD, weight_VD = hidden_BSD.detach(), weight_VD.detach()
        labels_N = labels_BS.flatten()
        loss = _Loss.apply(hidden_BSD.flatten(0, 1), weight_VD, labels_N, chunk or len(labels_N), twice, self)
        return loss, (labels_BS != IGNORE).sum()


class _Loss(torch.autograd.Function):
    """As `model/loss.py`'s chunked loss: a token's gradient is computed in the forward pass, piece by piece."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
        chunk: int,
        twice: bool,
        part: VocabularyParallel,
    ) -> torch.Tensor:
        wide = compute_dtype(hidden_ND.dtype)
        loss = torch.zeros((), dtype=wide, device=hidden_ND.device)
        hidden_needs, weight_needs = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden_ND) if hidden_needs else None
        weight_gradient = torch.zeros_like(weight_VD, dtype=wide) if weight_needs else None
        padding = part.first + weight_VD.shape[0] - part.size  # rows of this part that no token has
        for first in range(0, len(labels_N), chunk):
            piece = slice(first, first + chunk)
            hidden_CD, labels_C = hidden_ND[piece], labels_N[piece].long()
            logits_CV = (hidden_CD @ weight_VD.T).to(wide)
            if padding > 0:
                logits_CV[:, max(weight_VD.shape[0] - padding, 0) :] = -torch.inf
            own_C = labels_C - part.first
            inside_C = (own_C >= 0) & (own_C < weight_VD.shape[0])
            column_C1 = own_C.where(inside_C, 0)[:, None]
            highest_C = reduced(logits_CV.amax(-1), "max", part.group)
            shifted_CV = logits_CV.sub_(highest_C[:, None])
            target_C = shifted_CV.gather(1, column_C1)[:, 0].where(inside_C, 0)
            exponentials_CV = shifted_CV.exp_()
            sums_2C = reduced(torch.stack([exponentials_CV.sum(-1), target_C]), "sum", part.group)
            counts_C = labels_C != IGNORE
            loss += ((sums_2C[0].log() - sums_2C[1]) * counts_C).sum()
            if not (hidden_needs or weight_needs):
                continue
            gradient_CV = exponentials_CV.div_(sums_2C[0][:, None])
            gradient_CV.scatter_add_(1, column_C1, -inside_C[:, None].to(wide))
            gradient_CV = gradient_CV.mul_(counts_C[:, None]).to(hidden_ND.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient_CV, weight_VD, out=hidden_gradient[piece])
            if weight_gradient is not None:
                weight_gradient += gradient_CV.T @ hidden_CD
        ctx.gradients = KeptGradients(hidden_gradient, weight_gradient, weight_VD.dtype, halves=2 if twice else 1)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.gradients.scaled(gradient), None, None, None, None
