"""What one process of a proof is told to do."""

from dataclasses import dataclass

FAULTS = ("gradient_scale",)
"""Faults that can be planted on purpose; `faults.plant` says what they break."""

TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Stretch:
    """Steps [first, last) of a proof; from `resume` on where it is a checkpoint's path. JSON in the work folder."""

    first: int
    last: int
    resume: str | None
    fault: str | None
