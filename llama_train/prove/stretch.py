"""What one process of a proof is told to do."""

from dataclasses import dataclass

FAULTS = {
    "gradient_scale": "gradients are averaged over the ranks where their sum is the gradient",
    "missed_reduction": "one parameter's gradient stays a summand: a norm's under tensor, a block's under FSDP2",
    "wrong_position": "one context rank counts its positions from 1",
    "dropped_micro_batch": "one rank leaves out the last micro-batch of every step",
    "stale_tied_embedding": "the two ends of a pipeline with tied embeddings do not add their gradients",
    "local_divisor": "each rank divides its loss by its own count of tokens, and the gradients are averaged",
    "local_norm": "every rank clips by the norm of its own part of the gradient",
    "lost_moments": "the optimizer's moments are not read on resuming",
    "merged_groups": "norms are decayed as matrices are",
    "stale_weights": "ZeRO goes on with the weights from before the checkpoint was read, until its next update",
}
"""Faults that can be planted on purpose; `faults.py` and `zero_faults.py` say how."""

ZERO_FAULTS = (
    "gradient_scale",
    "dropped_micro_batch",
    "local_divisor",
    "local_norm",
    "lost_moments",
    "merged_groups",
    "stale_weights",
)
"""Those that can be planted in DeepSpeed's engine."""

TIMEOUT_SECONDS = 400.0


@dataclass(frozen=True)
class Stretch:
    """Steps [first, last) of a proof; from `resume` on where it is a checkpoint's path. JSON in the work folder."""

    first: int
    last: int
    resume: str | None = None
    fault: str | None = None
    masked_rows: int = 0  # this many first rows of every batch have no label
    masked_tokens: int = 0  # this many first tokens of every row have no label
    gradient_steps: tuple[int, ...] = (0,)  # whose gradients are kept
