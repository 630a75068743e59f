"""What both engines do in the same way."""

from collections.abc import Iterable

import torch

from llama_train.config import TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.engine.engine import Chunk
from llama_train.model.initialize import initial_values
from llama_train.model.llama import IGNORE

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state that is cut like the weights, as torch and chunks call it."""


def valid_tokens(micro_batches: list[MicroBatch]) -> int:
    """Return how many labels count in the loss."""
    return sum(int((each.labels != IGNORE).sum()) for each in micro_batches)


@torch.no_grad()
def fill_with_initial_values(chunks: Iterable[Chunk], config: TrainConfig) -> None:
    """Write into the `weights/...` in `chunks` what training begins with, in their own dtype."""
    for chunk in chunks:
        name, lengths, dtype = chunk.name.removeprefix("weights/"), tuple(chunk.tensor.shape), chunk.tensor.dtype
        values = initial_values(config.seed, name, chunk.shape, chunk.offsets, lengths, config.model, dtype)
        chunk.tensor.copy_(values)
