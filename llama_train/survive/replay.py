"""Computing a step again from the same weights and the same batch, to tell hardware from code.

On one layout the same inputs give the same bits, so a difference is a fault of memory or a processor, or a kernel that
is not deterministic. The same bad numbers twice are the data's, the settings' or the code's.
"""

import math

from llama_train.data.batches import MicroBatch
from llama_train.engine.engine import Engine, RefusedUpdate


def replay(engine: Engine, micro_batches: list[MicroBatch], learning_rate: float) -> tuple[float, float]:
    """Compute loss and gradient norm of a batch and update nothing; every rank calls it."""
    try:
        engine.step(micro_batches, learning_rate, most_loss=-math.inf)
    except RefusedUpdate as refused:
        return refused.loss, refused.grad_norm
    raise AssertionError("an update was made although no loss was allowed")


def describe_replay(seen: tuple[float, float], again: tuple[float, float]) -> str:
    """Say what two computations of one step tell; each is (loss, gradient norm), and NaN equals NaN here."""
    if all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(seen, again, strict=True)):
        return f"replayed: loss={seen[0]!r} and grad_norm={seen[1]!r} again, bit by bit; not a fault of the hardware"
    return (
        f"replayed: loss={again[0]!r}, grad_norm={again[1]!r}, not loss={seen[0]!r}, grad_norm={seen[1]!r} as before, "
        "from the same weights and batch: memory or a processor is at fault, or a kernel is not deterministic"
    )
