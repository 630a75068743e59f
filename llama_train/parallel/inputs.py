"""From a micro-batch of whole rows to what this rank's model takes."""

import torch

from llama_train.data.batches import MicroBatch
from llama_train.parallel.context import own_tokens
from llama_train.parallel.layout import Layout


def model_inputs(micro_batch: MicroBatch, layout: Layout, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the arguments of `Llama.forward` on `device`: this rank's tokens, but the document ids of whole rows."""
    own = slice(None)
    if layout.context > 1:
        own = own_tokens(micro_batch.tokens.shape[1], layout)
    inputs = {
        "tokens": micro_batch.tokens[:, own],
        "labels": micro_batch.labels[:, own],
        "document_ids": micro_batch.document_ids,
        "positions": micro_batch.positions[:, own],
    }
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items() if value is not None}
