"""One rank of any world, really built and trained for a step on fake tensors: bytes counted, not computed.

The process group is torch's "fake" backend, of the full world size: collectives return at once. Tensors have shapes and
storages but no memory behind them, so a rank of a 405B model fits a laptop. Bytes of weights and optimizer are those of
a real rank; the activations are what autograd keeps of the same operations, run eagerly with the CPU's kernels.

torch's pipeline schedules talk to their neighbours and do not run here: the most micro-batches that the rank ever holds
(`memory.in_flight`) go forward, and backward in the same order.
"""

import contextlib
import logging
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama_foundation.errors import RunError
from llama_train.config import AttentionName, ContextMethod, Precision, TrainConfig
from llama_train.model import loss
from llama_train.model.attention import document_mask
from llama_train.model.llama import Llama
from llama_train.optimizer.adamw import build_adamw
from llama_train.parallel.apply import parallelize, reduces_every_micro_batch
from llama_train.parallel.held import held_parameters
from llama_train.parallel.layout import Layout, make_groups
from llama_train.parallel.resolve import resolve_layout
from llama_train.parallel.stages import make_stage, stage_numbers, stage_ranks


@dataclass(frozen=True)
class Exact:
    """Bytes of one rank, counted."""

    weights: int
    gradients: int
    optimizer: int
    kept: int  # what is alive when the last forward pass has ended, without weights, gradients and optimizer
    peak: int  # the most that was alive at once


class LiveBytes(TorchDispatchMode):
    """Sums the storages that are alive whenever an operation made one."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, Any] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        self.note(result)
        return result

    def note(self, values: Any) -> None:
        """Begin to count the storages of the tensors in `values`."""
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                storage = (value.to_local() if isinstance(value, DTensor) else value).untyped_storage()
                key = storage._cdata
                if key not in self._alive:
                    self._alive[key] = weakref.ref(storage, lambda _, key=key: self._alive.pop(key, None))
                    self.peak = max(self.peak, self.now())

    def now(self) -> int:
        """Return the bytes that are alive."""
        storages = [reference() for reference in list(self._alive.values())]
        return sum(storage.nbytes() for storage in storages if storage is not None)


def measure(config: TrainConfig, world_size: int, rank: int, in_flight: int, micro_batches: int) -> Exact:
    """Build rank `rank` of `world_size` and train it for a step.

    Args:
        in_flight: micro-batches that go forward before the first one goes backward.
        micro_batches: of a step; where they are more than `in_flight`, gradients of earlier ones are there.

    Raises:
        RunError: this process is already in a process group.
        ConfigError: the layout does not fit.
    """
    layout = resolve_layout(config, world_size, rank)
    with _fake_world(rank, world_size):
        groups = make_groups(layout, torch.device("cpu"), 60.0, config.model.tied_embeddings)
        dtype = torch.float64 if config.engine.precision is Precision.fp64 else torch.float32
        models: dict[int, Llama] = {}
        for stage in stage_numbers(layout):
            with torch.device("meta"):
                models[stage] = make_stage(config.model, layout, stage).to(dtype)
            parallelize(models[stage], config.engine, layout, groups, "cpu")
            if layout.context == 1 or config.layout.context_method is ContextMethod.ulysses:
                models[stage].model.make_mask = document_mask  # the choice by shape would read the document ids
        with FakeTensorMode(allow_non_fake_inputs=True):
            models = {stage: model.to_empty(device="cpu") for stage, model in models.items()}
            held = held_parameters(models, config.model, layout)
            parameters = [each.parameter for each in held]
            optimizer = build_adamw(((each.name, each.parameter) for each in held), config.optimizer)
            with LiveBytes() as live, _pieces_of_the_loss_as_on_a_gpu():
                live.note(parameters)
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.step()  # makes the moments
                live.note([list(state.values()) for state in optimizer.state.values()])
                if micro_batches <= in_flight:
                    optimizer.zero_grad()
                before = live.now()
                live.peak = before
                kept = _step(models, config, layout, in_flight, live)
                sizes = _bytes(parameters), _bytes([parameter.grad for parameter in parameters])
                optimizer.step()
                moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
                return Exact(*sizes, _bytes(moments), kept - before, live.peak)


def _step(models: dict[int, Llama], config: TrainConfig, layout: Layout, in_flight: int, live: LiveBytes) -> int:
    """Return the bytes alive when all forward passes have ended."""
    rows, length = layout.micro_batch_size, config.data.longest_sequence()
    stages = stage_ranks(layout)
    every = reduces_every_micro_batch(config.engine, layout)
    dtype = {Precision.bf16: torch.bfloat16, Precision.fp64: torch.float64}.get(config.engine.precision, torch.float32)
    own = length // layout.context
    positions = torch.zeros(rows, own, dtype=torch.int32)
    documents = torch.zeros(rows, length, dtype=torch.int32) if _dense_mask(config) else None
    waiting = []
    for _ in range(in_flight):
        for stage, model in models.items():
            hidden: Any = torch.zeros(rows, own, dtype=torch.int32)
            if stage > 0:
                shape = rows, own // layout.tensor, config.model.hidden_size
                hidden = torch.zeros(shape, dtype=dtype, requires_grad=True)
            labels = torch.zeros(rows, own, dtype=torch.int32) if stage == len(stages) - 1 else None
            waiting.append((stage, model(hidden, labels, documents, positions)))
    kept = live.now()
    for number, (stage, output) in enumerate(waiting):
        last = number >= len(waiting) - len(models)
        if isinstance(models[stage], FSDPModule):
            models[stage].set_is_last_backward(last or every)
            models[stage].set_requires_gradient_sync(last or every)
        result = output[0] if isinstance(output, tuple) else output
        waiting[number] = None
        if result.ndim > 1:
            result.backward(torch.zeros_like(result))
        else:
            result.sum().backward()
        del output, result
    return kept


def _dense_mask(config: TrainConfig) -> bool:
    """Whether a mask tensor is made. Context parallelism without one builds a tensor subclass that cannot be fake."""
    gathers = config.layout.context > 1 and config.layout.context_method is ContextMethod.all_gather
    return gathers or (config.data.document_masks and config.engine.attention is AttentionName.sdpa)


def _bytes(tensors: list[Any]) -> int:
    local = [each.to_local() if isinstance(each, DTensor) else each for each in tensors if each is not None]
    return sum(each.numel() * each.element_size() for each in local)


@contextlib.contextmanager
def _pieces_of_the_loss_as_on_a_gpu() -> Iterator[None]:
    """On a CPU the loss takes smaller pieces than `engine.loss_chunk`."""
    piece, loss._CPU_PIECE = loss._CPU_PIECE, sys.maxsize
    try:
        yield
    finally:
        loss._CPU_PIECE = piece


@contextlib.contextmanager
def _fake_world(rank: int, world_size: int) -> Iterator[None]:
    if dist.is_initialized():
        raise RunError("plan.exact=true makes a process group of its own, but this process is in one; start it alone")
    from torch.testing._internal.distributed import fake_pg  # registers the backend

    assert fake_pg
    noisy = logging.getLogger("torch.distributed.tensor._redistribute")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=fake_pg.FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        noisy.setLevel(level)
