"""The ranks that run one model together outside of training.

A sharded model gathers its weights in every forward pass, so all ranks must run the same number of passes, whatever
each of them has to do. Work is therefore written as a generator that yields before each of its forward passes.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from llama_foundation.errors import RunError, UserError
from llama_train.checkpoint.collective import broadcast_bytes, gather_bytes


class Peers:
    """The ranks of a group; without a group, this process alone.

    Args:
        group: a gloo group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group if group is not None and dist.get_world_size(group) > 1 else None
        self.rank = 0 if self.group is None else dist.get_rank(group)
        self.size = 1 if self.group is None else dist.get_world_size(group)

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank; every rank must ask."""
        if self.group is None:
            return flag
        answer = torch.tensor(int(flag))
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self.group)
        return bool(answer)

    def share(self, results: dict[int, Any]) -> list[Any]:
        """Return the results of all ranks, on all of them, in the order of their numbers: 0, 1, ...

        Args:
            results: this rank's, JSON values by number; no number may be another rank's too.
        """
        gathered = gather_bytes(json.dumps(list(results.items())).encode(), self.group)
        together = broadcast_bytes(b"[" + b",".join(gathered) + b"]" if gathered else None, self.group)
        pairs = sorted((pair for part in json.loads(together) for pair in part), key=lambda pair: pair[0])
        assert [number for number, _ in pairs] == list(range(len(pairs)))
        return [result for _, result in pairs]


def in_step(passes: Iterator[None], model: Any, peers: Peers) -> None:
    """Run `passes`, which yields before each of its forward passes, on all ranks.

    A rank whose passes have ended runs the model on a single token, until no rank has any left.

    Raises:
        UserError: raised by the passes of any rank, after the others have ended theirs.
    """
    ended = object()
    failure: UserError | None = None

    def advance() -> bool:
        nonlocal failure
        try:
            return next(passes, ended) is not ended
        except UserError as error:
            failure = error
            return False

    pending = advance()
    while peers.any(pending):
        if pending:
            pending = advance()
        else:
            with torch.no_grad():
                model(torch.zeros(1, 1, dtype=torch.int64, device=device_of(model)))
    if peers.any(failure is not None):
        raise failure or RunError("another rank could not go on; see its message")


def device_of(model: Any) -> torch.device:
    """Return where the weights of `model` are."""
    return next(model.parameters()).device
