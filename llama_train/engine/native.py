"""The PyTorch-native engine: FSDP2 for sharding, torch's fused AdamW for the update."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from llama_train.config import Precision, TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.engine.engine import Chunk, NonFiniteError, StepResult
from llama_train.model.initialize import initial_values
from llama_train.model.llama import IGNORE, Llama
from llama_train.model.names import canonical_parameters
from llama_train.optimizer.adamw import build_adamw
from llama_train.parallel.apply import parallelize
from llama_train.parallel.layout import Layout

MOMENTS = ("exp_avg", "exp_avg_sq")


class NativeEngine:
    """One model under FSDP2 on this rank, with its optimizer. See `engine.Engine` for the methods."""

    def __init__(self, config: TrainConfig, layout: Layout, device: torch.device) -> None:
        self.device = device
        self.max_grad_norm = config.optimizer.max_grad_norm
        dtype = torch.float64 if config.engine.precision is Precision.fp64 else torch.float32
        with torch.device("meta"):
            self.model = Llama(config.model).to(dtype)
        parallelize(self.model, config.engine, layout, device.type)
        self.model.to_empty(device=device)
        self.parameters = dict(canonical_parameters(self.model))
        for chunk in self.chunks(optimizer=False):
            name = chunk.name.removeprefix("weights/")
            chunk.tensor.copy_(
                initial_values(config.seed, name, chunk.shape, chunk.offsets, chunk.tensor.shape, config.model, dtype)
            )
        self.optimizer = build_adamw(self.parameters.items(), config.optimizer)

    def step(
        self,
        micro_batches: list[MicroBatch],
        learning_rate: float,
        look_at_gradients: Callable[[Iterator[Chunk]], None] | None = None,
        look_at_outputs: Callable[[int, torch.Tensor], None] | None = None,
    ) -> StepResult:
        valid = torch.tensor(sum(int((m.labels != IGNORE).sum()) for m in micro_batches), device=self.device)
        dist.all_reduce(valid)
        tokens = int(valid)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        for micro_batch in micro_batches:
            with _shown(self.model, look_at_outputs):
                loss_sum, _ = self._forward(micro_batch)
            # A batch without a single valid token has loss 0 and gradients 0, not NaN.
            (loss_sum / max(tokens, 1)).backward()
            loss += loss_sum.detach()
        dist.all_reduce(loss)
        if look_at_gradients is not None:
            look_at_gradients(self._gradient_chunks())
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        result = StepResult(float(loss) / max(tokens, 1), float(norm), tokens)
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            self.optimizer.zero_grad()
            raise NonFiniteError(result.loss, result.grad_norm)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result

    @torch.no_grad()
    def evaluate(self, micro_batches: list[MicroBatch]) -> tuple[float, int]:
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for micro_batch in micro_batches:
            loss_sum, count = self._forward(micro_batch)
            totals += torch.stack([loss_sum.double(), count.double()])
        dist.all_reduce(totals)
        return float(totals[0]), int(totals[1])

    def chunks(self, optimizer: bool = True) -> Iterator[Chunk]:
        for name, parameter in self.parameters.items():
            yield from local_chunk(f"weights/{name}", parameter)
            if optimizer:
                for moment in MOMENTS:
                    yield from local_chunk(f"optimizer/{moment}/{name}", self.optimizer.state[parameter][moment])

    @torch.no_grad()
    def load_chunks(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            kind, _, name = chunk.name.partition("/")
            if kind == "optimizer":
                moment, _, name = name.partition("/")
                tensor = self.optimizer.state[self.parameters[name]][moment]
            else:
                tensor = self.parameters[name]
            (target,) = local_chunk(chunk.name, tensor)
            assert target.offsets == chunk.offsets and target.tensor.shape == chunk.tensor.shape, chunk.name
            target.tensor.copy_(chunk.tensor)

    def scalars(self) -> dict[str, Any]:
        steps = {float(self.optimizer.state[p]["step"]) for p in self.parameters.values()}
        assert len(steps) == 1, "every parameter takes every update"
        return {"adamw_step": steps.pop()}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        for parameter in self.parameters.values():
            self.optimizer.state[parameter]["step"].fill_(scalars["adamw_step"])

    def _gradient_chunks(self) -> Iterator[Chunk]:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                yield from local_chunk(f"gradients/{name}", parameter.grad)

    def _forward(self, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        ids = micro_batch.document_ids
        return self.model(
            micro_batch.tokens.to(self.device, non_blocking=True),
            micro_batch.labels.to(self.device, non_blocking=True),
            None if ids is None else ids.to(self.device, non_blocking=True),
            micro_batch.positions.to(self.device, non_blocking=True),
        )


@contextlib.contextmanager
def _shown(model: Llama, look: Callable[[int, torch.Tensor], None] | None) -> Iterator[None]:
    """Show `look` the outputs of the model's layers.

    It wraps what calling a module calls, in front of compiled code (`nn.Module.compile` sets the same attribute) and of
    recomputation: hooks that come after compilation are not seen by it, and others would be called twice.
    """
    if look is None:
        yield
        return
    blocks = {int(layer): block for layer, block in model.model.layers.items()}
    before = {layer: block._compiled_call_impl for layer, block in blocks.items()}

    def showing(layer: int, call: Callable) -> Callable:
        def call_and_show(*arguments: Any, **named: Any) -> Any:
            output = call(*arguments, **named)
            look(layer, output.detach())
            return output

        return call_and_show

    try:
        for layer, block in blocks.items():
            block._compiled_call_impl = showing(layer, before[layer] or block._call_impl)
        yield
    finally:
        for layer, block in blocks.items():
            block._compiled_call_impl = before[layer]


def local_chunk(name: str, tensor: torch.Tensor) -> Iterator[Chunk]:
    """Yield the rectangle of `tensor` on this rank; nothing where FSDP2 gave this rank no row."""
    shape = tuple(tensor.shape)
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        yield Chunk(name, shape, (0,) * len(shape), tensor)
        return
    local = tensor.to_local()
    if local.numel() == 0:
        return
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    owner = all(
        place == 0
        for place, placement in zip(coordinate, tensor.placements, strict=True)
        if isinstance(placement, Replicate)
    )
    yield Chunk(name, shape, tuple(offsets), local, owner)
