"""What every engine offers, and the only things the rest of the package knows of it."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from llama_train.data.batches import MicroBatch


@dataclass(frozen=True)
class Chunk:
    """A rectangle of one tensor, held by this rank.

    `name` is `weights/<canonical>`, `optimizer/exp_avg/<canonical>` or `optimizer/exp_avg_sq/<canonical>`, where
    canonical is the Hugging Face Llama parameter name. `shape` is the whole, unpadded tensor's; `offsets` says where
    `tensor` (whose shape is the rectangle's) lies in it. Where several ranks hold the same rectangle, exactly one of
    them has `owner` set.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: torch.Tensor
    owner: bool = True


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every rank."""

    loss: float  # mean over the valid tokens of the global batch, before the update
    grad_norm: float  # global L2 norm before clipping
    tokens: int  # valid (counted) tokens of the global batch
    pipeline_bubble: float | None = None  # share of the passes' time that pipeline ranks computed nothing
    applied: bool = True  # False: the update was refused, and weights and optimizer are as before


class Engine(Protocol):
    """Loss, gradients and updates of one model under one layout."""

    model: torch.nn.Module  # tokens [B, S] to logits [B, S, V]; all ranks must run it together

    def step(
        self,
        micro_batches: list[MicroBatch],
        learning_rate: float,
        look_at_gradients: Callable[[Iterator[Chunk]], None] | None = None,
        look_at_outputs: Callable[[int, torch.Tensor], None] | None = None,
        most_loss: float = math.inf,
    ) -> StepResult:
        """Run one optimizer step over this rank's micro-batches.

        Args:
            micro_batches: this data-parallel rank's share of the global batch.
            learning_rate: of this update.
            look_at_gradients: shown the whole batch's gradients, before clipping, as chunks named
                `gradients/<canonical>`.
            look_at_outputs: shown (layer, its output [B, S, D]) of every micro-batch.
            most_loss: an update with a larger loss is refused.

        Raises:
            RefusedUpdate: the loss is too large, or it or the gradient norm is not finite; weights and optimizer
                are untouched, and the optimizer's step count is as well.
        """

    def evaluate(self, micro_batches: list[MicroBatch]) -> tuple[float, int]:
        """Return (sum of the loss, number of valid tokens) over all ranks' micro-batches, without gradients."""

    def chunks(self, optimizer: bool = True) -> Iterator[Chunk]:
        """Yield this rank's part of the weights and, if asked, of the optimizer state; nothing is gathered."""

    def load_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Copy `chunks`, the same rectangles that `chunks()` yields, into the live weights and optimizer state."""

    def scalars(self) -> dict[str, Any]:
        """Optimizer state that is not a tensor (the AdamW step count), as JSON values."""

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take back what `scalars` gave."""


class RefusedUpdate(Exception):  # noqa: N818 - no error: what to do about it is the run's decision
    """An update was not made. `loss` and `grad_norm` are the values seen, the same on every rank."""

    def __init__(self, loss: float, grad_norm: float) -> None:
        super().__init__(f"loss={loss}, grad_norm={grad_norm}")
        self.loss = loss
        self.grad_norm = grad_norm

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def is_fine(loss: float, grad_norm: float, most_loss: float) -> bool:
    """Whether an update with these numbers may be made."""
    return math.isfinite(loss) and math.isfinite(grad_norm) and loss <= most_loss
