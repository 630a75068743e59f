"""Python's garbage collection at the same steps on every rank.

Left to itself, each process collects when it has made enough objects, and all others wait for it in the next
collective. With many ranks some rank is collecting at almost every step, so the job runs at the pace of a straggler
that changes all the time. Collected together, the pauses fall together and are paid once.
"""

import gc


class GarbageCollection:
    """Collects after every `every`-th finished step, and at no other time; 0 leaves Python's own schedule alone.

    Use as a context manager around the training loop. What exists at its start, modules and the model among it, is set
    aside (`gc.freeze`), so that a collection looks only at what the loop has made.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._was_enabled = False

    def step_done(self, step: int) -> None:
        """Collect if `step`, the number of finished steps and so the same on all ranks, says so."""
        if self._every > 0 and step % self._every == 0:
            gc.collect()

    def __enter__(self) -> "GarbageCollection":
        if self._every > 0:
            self._was_enabled = gc.isenabled()
            gc.collect()
            gc.disable()
            gc.freeze()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._every > 0:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
