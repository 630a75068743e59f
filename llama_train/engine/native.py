"""The PyTorch-native engine: FSDP2 for sharding, torch's fused AdamW for the update."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llama_train.config import Precision, TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.engine.engine import Chunk, RefusedUpdate, StepResult, is_fine
from llama_train.engine.outputs import shown
from llama_train.engine.shared import MOMENTS, fill_with_initial_values, valid_tokens
from llama_train.model.llama import Llama
from llama_train.optimizer.adamw import build_adamw
from llama_train.parallel.apply import parallelize, reduces_every_micro_batch
from llama_train.parallel.held import held_parameters
from llama_train.parallel.inputs import model_inputs
from llama_train.parallel.layout import Layout, make_groups
from llama_train.parallel.stages import make_stage, stage_numbers
from llama_train.parallel.stopwatch import Stopwatch
from llama_train.parallel.summands import add_up_summands
from llama_train.parallel.whole import WholeModel, splits

if TYPE_CHECKING:
    from llama_train.parallel.pipeline import Pipeline


class NativeEngine:
    """One model under FSDP2 on this rank, with its optimizer. See `engine.Engine` for the methods."""

    def __init__(self, config: TrainConfig, layout: Layout, device: torch.device) -> None:
        self.device = device
        self.layout = layout
        self.max_grad_norm = config.optimizer.max_grad_norm
        self.dtype = torch.float64 if config.engine.precision is Precision.fp64 else torch.float32
        self.reduce_every = reduces_every_micro_batch(config.engine, layout)
        self.groups = make_groups(layout, device, config.engine.collective_seconds, config.model.tied_embeddings)
        self.models: dict[int, Llama] = {}  # pipeline stage -> its part; one, 0, without a pipeline
        for stage in stage_numbers(layout):
            with torch.device("meta"):
                model = make_stage(config.model, layout, stage).to(self.dtype)
            parallelize(model, config.engine, layout, self.groups, device.type)
            self.models[stage] = model.to_empty(device="cpu" if config.engine.offload else device)
        self.held = held_parameters(self.models, config.model, layout)
        self._fill(config)
        self.optimizer = build_adamw(((held.name, held.parameter) for held in self.held), config.optimizer)
        self.pipeline = self._pipeline(config) if layout.pipeline > 1 else None
        self.model = self.models.get(0)
        if splits(layout) or config.engine.offload:
            self.model = WholeModel(self.models, layout, self.groups, self.pipeline, device)

    def step(
        self,
        micro_batches: list[MicroBatch],
        learning_rate: float,
        look_at_gradients: Callable[[Iterator[Chunk]], None] | None = None,
        look_at_outputs: Callable[[int, torch.Tensor], None] | None = None,
        most_loss: float = math.inf,
    ) -> StepResult:
        tokens = self._summed(valid_tokens(micro_batches), self.layout.counts_tokens)
        # A batch without a single valid token has loss 0 and gradients 0, not NaN.
        divisor = max(int(tokens), 1)
        for model in self.models.values():
            model.train()
        inputs = [model_inputs(each, self.layout, self.device) for each in micro_batches]
        watch = Stopwatch(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(watch.running())
            for model in self.models.values():
                stack.enter_context(shown(model, look_at_outputs))
            if self.pipeline is not None:
                loss = self.pipeline.forward_backward(inputs, divisor)
            else:
                loss = self._forward_backward(inputs, divisor)
            loss = self._summed(loss, self.layout.place["tensor"] == 0)
        add_up_summands(self.models, self.layout, self.groups)
        if look_at_gradients is not None:
            look_at_gradients(self._gradient_chunks())
        norm = self._gradient_norm()
        result = StepResult(float(loss) / divisor, float(norm), int(tokens), self._bubble(watch))
        if not is_fine(result.loss, result.grad_norm, most_loss):
            self.optimizer.zero_grad()
            raise RefusedUpdate(result.loss, result.grad_norm)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_([held.parameter for held in self.held], self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result

    @torch.no_grad()
    def evaluate(self, micro_batches: list[MicroBatch]) -> tuple[float, int]:
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for model in self.models.values():
            model.eval()
        for micro_batch in micro_batches:
            inputs = model_inputs(micro_batch, self.layout, self.device)
            result = self.models[0](**inputs) if self.pipeline is None else self.pipeline.forward(inputs)
            if result is not None and self.layout.place["tensor"] == 0:
                totals += torch.stack([result[0].double(), result[1].double()])
        dist.all_reduce(totals)
        return float(totals[0]), int(totals[1])

    def chunks(self, optimizer: bool = True) -> Iterator[Chunk]:
        for held in self.held:
            yield from held.chunks(f"weights/{held.name}", held.parameter)
            if optimizer:
                for moment in MOMENTS:
                    state = self.optimizer.state[held.parameter][moment]
                    yield from held.chunks(f"optimizer/{moment}/{held.name}", state)

    @torch.no_grad()
    def load_chunks(self, chunks: Iterable[Chunk]) -> None:
        targets: dict[str, list[Chunk]] = {}
        for target in self.chunks():
            targets.setdefault(target.name, []).append(target)
        for chunk in chunks:
            for target in targets[chunk.name]:  # two where this rank holds both ends of a pipeline with tied embeddings
                assert target.offsets == chunk.offsets and target.tensor.shape == chunk.tensor.shape, chunk.name
                target.tensor.copy_(chunk.tensor)

    def scalars(self) -> dict[str, Any]:
        steps = {float(self.optimizer.state[held.parameter]["step"]) for held in self.held}
        assert len(steps) == 1, "every parameter takes every update"
        return {"adamw_step": steps.pop()}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        for held in self.held:
            self.optimizer.state[held.parameter]["step"].fill_(scalars["adamw_step"])

    def _fill(self, config: TrainConfig) -> None:
        for held in self.held:
            local = held.parameter.detach()
            (local.to_local() if isinstance(local, DTensor) else local).zero_()  # rows that fill up a vocabulary
        fill_with_initial_values(self.chunks(optimizer=False), config)

    def _pipeline(self, config: TrainConfig) -> "Pipeline":
        from llama_train.parallel.pipeline import Pipeline  # a second of imports

        dtype = torch.bfloat16 if config.engine.precision is Precision.bf16 else self.dtype
        assert self.groups.pipeline is not None
        return Pipeline(self.models, self.layout, self.groups.pipeline, self.device, dtype, self.reduce_every)

    def _forward_backward(self, inputs: list[dict[str, torch.Tensor]], divisor: int) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, each in enumerate(inputs, start=1):
            if not self.reduce_every and isinstance(self.models[0], FSDPModule):
                self.models[0].set_requires_gradient_sync(number == len(inputs))
            loss_sum, _ = self.models[0](**each)
            (loss_sum / divisor).backward()
            loss += loss_sum.detach()
        return loss

    def _summed(self, value: Any, counts: bool) -> torch.Tensor:
        """Return the sum of `value` over the ranks where it `counts`, as float64."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if counts:
            total += value
        dist.all_reduce(total)
        return total

    def _bubble(self, watch: Stopwatch) -> float | None:
        """Return the share of the passes' time that pipeline ranks computed nothing, over all ranks."""
        if self.pipeline is None:
            return None
        seconds = torch.tensor([self.pipeline.busy.seconds(), watch.seconds()], dtype=torch.float64, device=self.device)
        dist.all_reduce(seconds)
        return float(1 - seconds[0] / seconds[1])

    def _gradient_norm(self) -> torch.Tensor:
        """Return the L2 norm of the whole gradient: every element is counted on the one rank that owns it."""
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk in self._gradient_chunks():
            if chunk.owner:
                # Row by row: one sum over a large matrix in float32 stops growing, and float64 takes 15 times as long.
                rows = torch.linalg.vector_norm(chunk.tensor, dim=-1)
                squares += rows.double().square().sum().to(self.device)
        dist.all_reduce(squares)
        return squares.sqrt()

    def _gradient_chunks(self) -> Iterator[Chunk]:
        for held in self.held:
            if held.parameter.grad is not None:
                yield from held.chunks(f"gradients/{held.name}", held.parameter.grad)
