"""Pipeline parallelism: a rank holds some of the layers, and micro-batches pass through the ranks.

The schedules are those of torch.distributed.pipelining. Only hidden states travel: labels, document ids and positions
come from the token order on every stage. The loss is computed inside the last stage's forward pass, and the schedule's
loss function only divides it by the number of valid tokens of the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._backward import stage_backward

from llama_train.model.llama import Llama
from llama_train.parallel.layout import Layout
from llama_train.parallel.schedules import SCHEDULES, is_single
from llama_train.parallel.stages import stage_ranks
from llama_train.parallel.stopwatch import Stopwatch


class Pipeline:
    """The stages of this rank and the schedule over them."""

    def __init__(
        self,
        models: dict[int, Llama],
        layout: Layout,
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        reduce_every: bool,
    ) -> None:
        """Prepare the stages.

        Args:
            models: stage number -> its part of the model, sharded.
            dtype: of hidden states.
            reduce_every: whether FSDP2 reduces the gradients of every micro-batch, or those of all at once at the end.
        """
        self.models = models
        self.layout = layout
        self.group = group
        self.device = device
        self.dtype = dtype
        self.reduce_every = reduce_every
        self.ranks = stage_ranks(layout)
        self.busy = Stopwatch(device)
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._divisor = 1.0

    def forward_backward(self, inputs: list[dict[str, torch.Tensor]], divisor: float) -> torch.Tensor:
        """Run all micro-batches forward and backward; return the summed loss, 0 on ranks without the last stage.

        Args:
            inputs: for every micro-batch the arguments of `Llama.forward`, with labels.
            divisor: of the loss before its backward pass.
        """
        self._divisor = divisor
        self.busy = Stopwatch(self.device)
        schedule = self._schedule(len(inputs), inputs[0]["tokens"].shape[0], inputs[0]["positions"].shape[1])
        joined = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
        tokens = joined.pop("tokens")
        losses: list[torch.Tensor] = []
        arguments = (tokens,) if 0 in self.models else ()
        schedule.step(*arguments, target=joined["labels"], losses=losses, return_outputs=False, **joined)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for loss in losses:
            total += loss.detach().double() * divisor
        return total

    @torch.no_grad()
    def forward(self, inputs: dict[str, torch.Tensor | None]) -> Any:
        """Run one micro-batch through the stages; return what the last one gives, None on ranks without it."""
        tokens = inputs.pop("tokens")
        received, result = tokens, None
        for stage, rank in enumerate(self.ranks):
            own = rank == self.layout.place["pipeline"]
            if own:
                result = self.models[stage](received, **inputs)
            if stage + 1 == len(self.ranks):
                return result if own else None
            received = self._passed_on(stage, result if own else None, tokens.shape[0], inputs["positions"].shape[1])
        raise AssertionError("a pipeline has a last stage")

    def _passed_on(self, stage: int, hidden: torch.Tensor | None, rows: int, length: int) -> torch.Tensor | None:
        sender, receiver, own = self.ranks[stage], self.ranks[stage + 1], self.layout.place["pipeline"]
        if sender == receiver:
            return hidden
        if own == sender:
            dist.send(hidden.contiguous(), group=self.group, group_dst=receiver)
        if own == receiver:
            received = torch.empty(self._hidden_shape(rows, length), dtype=self.dtype, device=self.device)
            dist.recv(received, group=self.group, group_src=sender)
            return received
        return None

    def _hidden_shape(self, rows: int, length: int) -> tuple[int, int, int]:
        config = next(iter(self.models.values())).model.config
        return rows, length // self.layout.tensor, config.hidden_size

    def _schedule(self, micro_batches: int, rows: int, length: int) -> Any:
        key = (micro_batches, rows, length)
        if key not in self._schedules:
            stages = [self._stage(stage, rows, length) for stage in sorted(self.models)]
            kind = SCHEDULES[self.layout.config.pipeline_schedule]
            self._schedules[key] = kind(
                stages[0] if is_single(kind) else stages, micro_batches, loss_fn=self._divided, scale_grads=False
            )
        return self._schedules[key]

    def _stage(self, stage: int, rows: int, length: int) -> PipelineStage:
        shape = self._hidden_shape(rows, length)
        hidden = torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=True)
        tokens = torch.empty(rows, length, dtype=torch.int32, device="meta")
        last = stage == len(self.ranks) - 1
        loss_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        output = torch.empty(1, dtype=loss_dtype, device="meta", requires_grad=True) if last else hidden
        return _Stage(
            self,
            self.models[stage],
            stage,
            len(self.ranks),
            self.device,
            input_args=tokens if stage == 0 else hidden,
            output_args=output,
            group=self.group,
        )

    def _divided(self, loss: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss.sum() / self._divisor


class _Stage(PipelineStage):
    """A stage that adds the time it computes to its pipeline's (the rest of a step is the bubble).

    Unless all gradients are to be reduced at once, FSDP2 reduces those of every micro-batch: torch's own stage would
    keep the unsharded gradients of all (282 GB for 70B in float32).
    """

    def __init__(self, pipeline: Pipeline, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._pipeline = pipeline

    def forward_one_chunk(self, *arguments: Any, **named: Any) -> Any:
        with self._pipeline.busy.running():
            return super().forward_one_chunk(*arguments, **named)

    def backward_one_chunk(self, *arguments: Any, **named: Any) -> Any:
        with self._pipeline.busy.running():
            return super().backward_one_chunk(*arguments, **named)

    def backward_weight_one_chunk(self, *arguments: Any, **named: Any) -> Any:
        with self._pipeline.busy.running():
            return super().backward_weight_one_chunk(*arguments, **named)

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> tuple[Any, Any]:
        if backward_type != "full" or not self._pipeline.reduce_every or not isinstance(self.submod, FSDPModule):
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        self.submod.set_is_last_backward(True)
        self.submod.set_requires_gradient_sync(True)
        inputs = bwd_kwargs["input_values"]
        return stage_backward(bwd_kwargs["stage_output"], bwd_kwargs["output_grads"], inputs), None
