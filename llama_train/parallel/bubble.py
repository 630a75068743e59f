"""The bubble of a pipeline: the share of a step's time in which its ranks compute nothing."""

from types import SimpleNamespace

import torch
from torch import nn

from llama_train.config import PipelineSchedule
from llama_train.parallel.layout import Layout
from llama_train.parallel.schedules import SCHEDULES, is_single
from llama_train.parallel.stages import stage_ranks

_UNITS = {"F": 1, "I": 1, "W": 1, "B": 2}
"""How long a forward pass, the two halves of a backward pass, and a whole backward pass take."""


def ideal_bubble(layout: Layout, micro_batches: int) -> float:
    """Return the bubble of the layout's schedule if all stages were equal and messages took no time.

    The schedule's own order is played through, a backward pass taking twice as long as a forward pass: half of it for
    the gradients of inputs, half for those of weights.
    """
    ranks = stage_ranks(layout)
    order = _order(layout, micro_batches, len(ranks))
    ended: dict[tuple[str, int, int], int] = {}
    clocks = dict.fromkeys(order, 0)
    waiting = {rank: list(actions) for rank, actions in order.items()}
    while any(waiting.values()):
        moved = False
        for rank, actions in waiting.items():
            while actions and (ready := _ready(actions[0], ended, len(ranks))) is not None:
                kind, stage, number = actions.pop(0)
                clocks[rank] = max(clocks[rank], ready) + _UNITS[kind]
                ended[kind, stage, number] = clocks[rank]
                moved = True
        assert moved, "a schedule waits for itself"
    busy = sum(_UNITS[kind] for actions in order.values() for kind, _, _ in actions)
    return 1 - busy / (len(order) * max(clocks.values()))


def _order(layout: Layout, micro_batches: int, stages: int) -> dict[int, list[tuple[str, int, int]]]:
    """Return every pipeline rank's (kind, stage, micro-batch), as torch's schedule has them."""
    if layout.config.pipeline_schedule is PipelineSchedule.one_f_one_b:
        return {rank: _one_f_one_b(rank, layout.pipeline, micro_batches) for rank in range(layout.pipeline)}
    own = [
        SimpleNamespace(
            num_stages=stages,
            group_size=layout.pipeline,
            group_rank=0,
            stage_index=stage,
            is_first=stage == 0,
            is_last=stage == stages - 1,
            has_backward=True,
            submod=nn.Identity(),
            device=torch.device("cpu"),
            group=None,
        )
        for stage, rank in enumerate(stage_ranks(layout))
        if rank == 0
    ]
    kind = SCHEDULES[layout.config.pipeline_schedule]
    schedule = kind(own[0] if is_single(kind) else own, micro_batches, loss_fn=_no_loss)
    order = {}
    for rank, actions in schedule.pipeline_order.items():
        flat = [each for action in actions if action for each in (getattr(action, "sub_actions", None) or (action,))]
        named = [(each.computation_type.value, each.stage_index, each.microbatch_index) for each in flat]
        order[rank] = [each for each in named if each[0] in _UNITS]
    return order


def _one_f_one_b(rank: int, ranks: int, micro_batches: int) -> list[tuple[str, int, int]]:
    """Return a rank's order; what torch 2.13 lists for this one schedule has wrong micro-batches in it."""
    forward = [("F", rank, number) for number in range(micro_batches)]
    backward = [("B", rank, number) for number in range(micro_batches)]
    ahead = min(ranks - rank, micro_batches)
    alternating = [each for pair in zip(backward, forward[ahead:], strict=False) for each in pair]
    return [*forward[:ahead], *alternating, *backward[micro_batches - ahead :]]


def _no_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise AssertionError("this schedule is only read")


def _ready(action: tuple[str, int, int], ended: dict[tuple[str, int, int], int], stages: int) -> int | None:
    """Return when what `action` needs from other stages is there; None if it has not been computed."""
    kind, stage, number = action
    if kind == "W":
        return ended.get(("I", stage, number))
    if kind == "F":
        return 0 if stage == 0 else ended.get(("F", stage - 1, number))
    if stage == stages - 1:
        return ended.get(("F", stage, number))
    return ended.get(("I", stage + 1, number), ended.get(("B", stage + 1, number)))
