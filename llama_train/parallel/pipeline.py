"""Pipeline parallelism: a rank holds some of the layers, and micro-batches pass through the ranks.

The schedules are those of torch.distributed.pipelining. Only hidden states travel: labels, document ids and positions
come from the token order on every stage. The loss is computed inside the last stage's forward pass, and the schedule's
loss function only divides it by the number of valid tokens of the whole batch.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as torch_schedules
from torch.distributed.pipelining._backward import stage_backward

from llama_train.config import ModelConfig, PipelineSchedule
from llama_train.model.llama import Llama
from llama_train.parallel.layout import Layout
from llama_train.parallel.stages import layers_per_stage, splits_backward, stage_layers, stage_ranks

_SCHEDULES = {
    PipelineSchedule.gpipe: torch_schedules.ScheduleGPipe,
    PipelineSchedule.one_f_one_b: torch_schedules.Schedule1F1B,
    PipelineSchedule.interleaved: torch_schedules.ScheduleInterleaved1F1B,
    PipelineSchedule.interleaved_zero_bubble: torch_schedules.ScheduleInterleavedZeroBubble,
    PipelineSchedule.zero_bubble_v: torch_schedules.ScheduleZBVZeroBubble,
    PipelineSchedule.dual_pipe_v: torch_schedules.ScheduleDualPipeV,
}


def make_stage(config: ModelConfig, layout: Layout, stage: int) -> Llama:
    """Return the part of a Llama that is pipeline stage `stage`; on the meta device if that is torch's default."""
    stages = stage_ranks(layout)
    model = Llama(config)
    if len(stages) == 1:
        return model
    own = stage_layers(layers_per_stage(config, len(stages), layout.config.layers_per_stage), stage)
    for layer in range(config.layers):
        if layer not in own:
            del model.model.layers[str(layer)]
    last = stage == len(stages) - 1
    if last and config.tied_embeddings:
        # The other end has the embedding: this is a copy of its weight, and `Held` names it so.
        model.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    if stage > 0:
        model.model.embed_tokens = None
    model.split_backward = splits_backward(layout)
    if last:
        model.register_forward_hook(_loss_alone)
    else:
        model.model.norm = None
        model.lm_head = None
    return model


def _loss_alone(model: Llama, arguments: Any, result: Any) -> Any:
    """Turn (loss, count) into the loss [1]: a schedule wants one tensor to begin its backward pass at."""
    return result[0].reshape(1) if torch.is_grad_enabled() and isinstance(result, tuple) else result


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
        self.busy_seconds = 0.0
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._divisor = 1.0

    def forward_backward(self, inputs: list[dict[str, torch.Tensor]], divisor: float) -> torch.Tensor:
        """Run all micro-batches forward and backward; return the summed loss, 0 on ranks without the last stage.

        Args:
            inputs: for every micro-batch the arguments of `Llama.forward`, with labels.
            divisor: of the loss before its backward pass.
        """
        self._divisor = divisor
        self.busy_seconds = 0.0
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
            kind = _SCHEDULES[self.layout.config.pipeline_schedule]
            single = issubclass(kind, torch_schedules.PipelineScheduleSingle)
            self._schedules[key] = kind(
                stages[0] if single else stages, micro_batches, loss_fn=self._divided, scale_grads=False
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
        with self._timed():
            return super().forward_one_chunk(*arguments, **named)

    def backward_one_chunk(self, *arguments: Any, **named: Any) -> Any:
        with self._timed():
            return super().backward_one_chunk(*arguments, **named)

    def backward_weight_one_chunk(self, *arguments: Any, **named: Any) -> Any:
        with self._timed():
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

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._pipeline.busy_seconds += time.perf_counter() - started
