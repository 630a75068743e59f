"""DeepSpeed's ZeRO behind the engine's interface: its communication and memory, our maths around it.

Ours are the divisor, the learning rate, clipping and when a step ends; DeepSpeed cuts, gathers, reduces, and calls
torch's AdamW on its flat slices.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from llama_foundation.errors import RunError
from llama_train.config import TrainConfig
from llama_train.data.batches import MicroBatch
from llama_train.engine.deepspeed.checks import check_nvme
from llama_train.engine.deepspeed.mend import groups_wait_no_longer, import_deepspeed
from llama_train.engine.deepspeed.partitions import Piece, find_partitions
from llama_train.engine.deepspeed.settings import resolve_settings, settings_line
from llama_train.engine.engine import Chunk, RefusedUpdate, StepResult, is_fine
from llama_train.engine.outputs import shown
from llama_train.engine.shared import MOMENTS, fill_with_initial_values, valid_tokens
from llama_train.model.llama import Llama
from llama_train.model.names import canonical_parameters
from llama_train.optimizer.adamw import adamw_without_state, first_state
from llama_train.parallel.activations import checkpoint_activations
from llama_train.parallel.attention_backend import choose_attention
from llama_train.parallel.inputs import model_inputs
from llama_train.parallel.layout import Layout


class DeepSpeedEngine:
    """One model under ZeRO on this rank, with its optimizer. See `engine.Engine` for the methods."""

    def __init__(self, config: TrainConfig, layout: Layout, device: torch.device) -> None:
        self.device = device
        self.layout = layout
        self.max_grad_norm = config.optimizer.max_grad_norm
        settings = resolve_settings(config, layout.world_size)
        _check_the_same_everywhere(settings_line(settings), device)
        deepspeed = import_deepspeed(device.type, device.index or 0)
        groups_wait_no_longer(config.engine.collective_seconds)
        check_nvme(config.engine)
        # Without it zero.Init would take this rank for the only one; the process group is there already.
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self.model = _build_model(config, layout, device, deepspeed, settings)
        names = {parameter: name for name, parameter in canonical_parameters(self.model)}
        optimizer = adamw_without_state([(name, parameter) for parameter, name in names.items()], config.optimizer)
        self.deepspeed, self.zero, _, _ = deepspeed.initialize(
            model=self.model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.optimizer = self.zero.optimizer  # torch's, over the masters
        if config.engine.compile:
            for block in self.model.blocks():
                block.compile()
        self.held = find_partitions(self.zero, names)
        for number, master in enumerate(self.held.masters):
            with self.held.present(number, state=True):
                self.optimizer.state[master] = first_state(master.detach())
        # DeepSpeed has made the masters from weights that it had rounded to bf16: they begin anew.
        fill_with_initial_values(self._chunks(optimizer=False, changed=True), config)
        with torch.no_grad():
            self.held.publish()

    def step(
        self,
        micro_batches: list[MicroBatch],
        learning_rate: float,
        look_at_gradients: Callable[[Iterator[Chunk]], None] | None = None,
        look_at_outputs: Callable[[int, torch.Tensor], None] | None = None,
        most_loss: float = math.inf,
    ) -> StepResult:
        tokens = int(self._summed(valid_tokens(micro_batches)))
        # A batch without a single valid token has loss 0 and gradients 0, not NaN.
        divisor = max(tokens, 1)
        self.model.train()
        with shown(self.model, look_at_outputs):
            loss = self._forward_backward(micro_batches, divisor)
        loss = float(self._summed(loss)) / divisor
        if look_at_gradients is not None:
            look_at_gradients(self._gradient_chunks())
        norm = self._gradient_norm()
        if not is_fine(loss, norm, most_loss):
            self._discard_step()
            raise RefusedUpdate(loss, norm)
        if 0 < self.max_grad_norm < norm + 1e-6:  # as torch.nn.utils.clip_grads_with_norm_
            self._scale_gradients(self.max_grad_norm / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        assert self.deepspeed.was_step_applied()
        return StepResult(loss, norm, tokens)

    @torch.no_grad()
    def evaluate(self, micro_batches: list[MicroBatch]) -> tuple[float, int]:
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.model.eval()
        for micro_batch in micro_batches:
            loss_sum, count = self.model(**model_inputs(micro_batch, self.layout, self.device))
            totals += torch.stack([loss_sum.double(), count.double()])
        dist.all_reduce(totals)
        return float(totals[0]), int(totals[1])

    def chunks(self, optimizer: bool = True) -> Iterator[Chunk]:
        return self._chunks(optimizer, changed=False)

    @torch.no_grad()
    def load_chunks(self, chunks: Iterable[Chunk]) -> None:
        # In the order of `chunks()`, some left out: what lies on NVMe is in memory only while it is passed.
        loaded = iter(chunks)
        chunk = next(loaded, None)
        for target in self._chunks(optimizer=True, changed=True):
            if chunk is not None and (chunk.name, chunk.offsets) == (target.name, target.offsets):
                assert target.tensor.shape == chunk.tensor.shape, chunk.name
                target.tensor.copy_(chunk.tensor)
                chunk = next(loaded, None)
        assert chunk is None, f"{chunk.name} is not held, or comes too late"
        self.held.publish()

    def scalars(self) -> dict[str, Any]:
        steps = {float(self.optimizer.state[master]["step"]) for master in self.held.masters}
        assert len(steps) == 1, "every parameter takes every update"
        return {"adamw_step": steps.pop()}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        for master in self.held.masters:
            self.optimizer.state[master]["step"].fill_(scalars["adamw_step"])

    def _chunks(self, optimizer: bool, changed: bool) -> Iterator[Chunk]:
        """Yield what `chunks` yields; `changed`: what is written into them lasts."""
        for master, pieces in itertools.groupby(self.held.pieces, key=lambda piece: piece.master):
            with self.held.present(master, state=changed):
                weights = self.held.masters[master]
                for piece in pieces:
                    yield from _part(piece, f"weights/{piece.name}", weights)
                    if optimizer:
                        for moment in MOMENTS:
                            state = self.optimizer.state[weights][moment]
                            yield from _part(piece, f"optimizer/{moment}/{piece.name}", state)

    def _forward_backward(self, micro_batches: list[MicroBatch], divisor: int) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            self.deepspeed.set_gradient_accumulation_boundary(number == len(micro_batches))
            loss_sum, _ = self.deepspeed(**model_inputs(micro_batch, self.layout, self.device))
            # DeepSpeed averages over the ranks: times their number, what comes out is the sum.
            self.deepspeed.backward(loss_sum * (self.layout.world_size / divisor), scale_wrt_gas=False)
            loss += loss_sum.detach()
        return loss

    def _summed(self, value: Any) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device) + value
        dist.all_reduce(total)
        return total

    def _gradient_norm(self) -> float:
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk in self._gradient_chunks():
            rows = torch.linalg.vector_norm(chunk.tensor, dim=-1)  # as in the native engine
            squares += rows.double().square().sum().to(self.device)
        dist.all_reduce(squares)
        return math.sqrt(float(squares))

    def _gradient_chunks(self) -> Iterator[Chunk]:
        for master, pieces in itertools.groupby(self.held.pieces, key=lambda piece: piece.master):
            with self.held.present(master):
                placed = self.held.gradients(master)
                for piece in pieces:
                    yield from piece.chunks(f"gradients/{piece.name}", piece.flat_among(placed))

    @torch.no_grad()
    def _scale_gradients(self, factor: float) -> None:
        for master in range(len(self.held.masters)):
            with self.held.present(master, gradients=True):
                for _, gradient in self.held.gradients(master):
                    gradient.mul_(factor)

    @torch.no_grad()
    def _discard_step(self) -> None:
        """Let DeepSpeed skip this step, as it does when gradients are not finite, and clear what it has gathered."""
        for master in range(len(self.held.masters)):
            with self.held.present(master, gradients=True):
                for _, gradient in self.held.gradients(master):
                    gradient.fill_(math.nan)
        for parameter in getattr(self.zero, "norm_for_param_grads", {}):  # offloaded, these are what it looks at
            self.zero.norm_for_param_grads[parameter] = torch.tensor(math.inf)
        self.deepspeed.step()
        assert not self.deepspeed.was_step_applied()


def _build_model(
    config: TrainConfig, layout: Layout, device: torch.device, deepspeed: Any, settings: dict[str, Any]
) -> Llama:
    """Build the model: for ZeRO-3 cut as it comes into being, one module after the other."""
    if config.engine.zero_stage == 3:
        with deepspeed.zero.Init(config_dict_or_path=settings):
            model = Llama(config.model)
        # The loss reads the head's weight without calling the head, so nothing would gather it.
        head = model.model.embed_tokens if model.lm_head is None else model.lm_head
        deepspeed.zero.register_external_parameter(model, head.weight)
    else:
        with torch.device("meta"):
            model = Llama(config.model).to(torch.float32)
        model = model.to_empty(device=device)
        for _, parameter in canonical_parameters(model):
            torch.nn.init.zeros_(parameter)
    model.model.make_mask = choose_attention(config.engine, config.model, device.type, speaks=layout.rank == 0)
    model.loss_chunk = config.engine.loss_chunk
    checkpoint_activations(model, config.engine)
    return model


def _part(piece: Piece, name: str, master: torch.Tensor) -> Iterator[Chunk]:
    return piece.chunks(name, master.detach().narrow(0, piece.position, piece.length))


def _check_the_same_everywhere(line: str, device: torch.device) -> None:
    """Compare the settings of all ranks: each has read engine.config_file by itself.

    Raises:
        RunError: they differ.
    """
    number = int.from_bytes(hashlib.sha256(line.encode()).digest()[:7], "little")
    ends = torch.tensor([number, -number], dtype=torch.int64, device=device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise RunError("engine.config_file is not the same on all nodes; put it on a file system that they share")
