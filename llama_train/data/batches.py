"""Sample ids to tensors."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads; every tensor is int64 of shape [micro_batch_size, sequence_length].

    `labels` are the next tokens, `IGNORE` where the loss does not count. `document_ids` number the documents inside a
    row from 0; `positions` count from 0 inside each document (inside the row without document masks, where
    `document_ids` is None).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    document_ids: torch.Tensor | None
    positions: torch.Tensor


IGNORE = -100
