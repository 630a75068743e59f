"""What a rank holds under ZeRO: flat ranges of parameters, seen as rectangles, wherever the optimizer keeps them.

ZeRO 1 and 2 lay the parameters of a group one after the other and cut the whole into equal parts; ZeRO-3 cuts every
parameter into equal parts. Either way a rank's share of a parameter is one range of its flattened elements, which lies
in one of the flat float32 tensors that AdamW updates: the masters. Names of attributes are those of DeepSpeed 0.19.8.
"""

import bisect
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from llama_train.engine.engine import Chunk


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + length` of the flattened parameter `name`; they lie in a master at `position`."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    length: int
    master: int
    position: int

    def chunks(self, name: str, flat: torch.Tensor) -> Iterator[Chunk]:
        """Yield the piece's rectangles of `flat`, which holds its elements and nothing else, as views."""
        begin = 0
        for offsets, lengths in rectangles(self.shape, self.start, self.start + self.length):
            count = math.prod(lengths)
            yield Chunk(name, self.shape, offsets, flat.narrow(0, begin, count).view(lengths))
            begin += count

    def flat_among(self, placed: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """Return the piece's elements, flat, of tensors that lie one after the other at the positions given."""
        position, tensor = placed[bisect.bisect_right(placed, self.position, key=lambda each: each[0]) - 1]
        return tensor.detach().reshape(-1).narrow(0, self.position - position, self.length)


def rectangles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut elements `start` to `stop` of a flattened tensor of one or two dimensions into (offsets, lengths), in order.

    A range of a matrix is at most three rectangles: the end of a row, whole rows, the beginning of a row.
    """
    if len(shape) == 1:
        if stop > start:
            yield (start,), (stop - start,)
        return
    columns = shape[1]
    while start < stop:
        row, column = divmod(start, columns)
        whole = (stop - start) // columns
        if column == 0 and whole > 0:
            yield (row, 0), (whole, columns)
            start += whole * columns
        else:
            count = min(columns - column, stop - start)
            yield (row, column), (1, count)
            start += count


class Partitions(Protocol):
    """The masters of this rank, and what lies where in them."""

    masters: list[torch.Tensor]
    pieces: list[Piece]  # master after master

    def present(self, master: int, state: bool = False, gradients: bool = False) -> contextlib.AbstractContextManager:
        """Bring a master, its optimizer state and its gradients into memory, for as long as this lasts.

        Args:
            state, gradients: whether what was changed in these (the master counts as state) is to last.
        """

    def gradients(self, master: int) -> list[tuple[int, torch.Tensor]]:
        """Return (position, gradient) of a master's elements after the last backward pass; what fills up, too."""

    def publish(self) -> None:
        """Make the weights that are computed with those of the masters; every rank calls this."""


def find_partitions(zero: Any, names: dict[torch.nn.Parameter, str]) -> Partitions:
    """Return the partitions of DeepSpeed's optimizer `zero`.

    Args:
        names: canonical names of the model's parameters.
    """
    match type(zero).__name__:
        case "DeepSpeedZeroOptimizer":
            return _FlatGroups(zero, names)
        case "BF16_Optimizer":
            return _Bf16Groups(zero, names)
        case "DeepSpeedZeroOptimizer_Stage3":
            return _CutParameters(zero, names)
    raise AssertionError(type(zero))


class _InMemory:
    """Masters that are always there."""

    def present(self, master: int, state: bool = False, gradients: bool = False) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


class _FlatGroups(_InMemory):
    """ZeRO 1 and 2."""

    def __init__(self, zero: Any, names: dict[torch.nn.Parameter, str]) -> None:
        self.zero = zero
        self.masters = zero.single_partition_of_fp32_groups
        self.pieces = []
        for number, parameters in enumerate(zero.round_robin_bit16_groups):
            offsets = zero.round_robin_bit16_offsets[number]
            self.pieces += _cut(number, parameters, offsets, zero.partition_size[number], names)

    def gradients(self, master: int) -> list[tuple[int, torch.Tensor]]:
        if self.zero.cpu_offload:
            return [(0, self.masters[master].grad)]
        return _one_after_the_other(self.zero.averaged_gradients[master])

    def publish(self) -> None:
        self.zero.update_lp_params()


class _Bf16Groups(_InMemory):
    """ZeRO-1 in bf16 with gradients in float32, for which DeepSpeed has a class of its own."""

    def __init__(self, zero: Any, names: dict[torch.nn.Parameter, str]) -> None:
        self.zero = zero
        self.masters = zero.fp32_groups_flat_partition
        self.pieces = []
        for number, parameters in enumerate(zero.bf16_groups):
            sizes = [parameter.numel() for parameter in parameters]
            offsets = [sum(sizes[:place]) for place in range(len(sizes))]
            self.pieces += _cut(number, parameters, offsets, self.masters[number].numel(), names)

    def gradients(self, master: int) -> list[tuple[int, torch.Tensor]]:
        return [(0, self.zero.fp32_groups_gradient_flat_partition[master])]

    def publish(self) -> None:
        self.zero.update_lp_params()


class _CutParameters:
    """ZeRO-3."""

    def __init__(self, zero: Any, names: dict[torch.nn.Parameter, str]) -> None:
        self.zero = zero
        self.masters = zero.fp32_partitioned_groups_flat
        self.pieces = []
        rank = dist.get_rank()
        for number, parameters in enumerate(zero.fp16_groups):
            position = 0
            for parameter in parameters:
                share = parameter.partition_numel()
                start = min(rank * share, parameter.ds_numel)
                length = min(share, parameter.ds_numel - start)
                if length:
                    shape = tuple(parameter.ds_shape)
                    self.pieces.append(Piece(names[parameter], shape, start, length, number, position))
                position += share

    @contextlib.contextmanager
    def present(self, master: int, state: bool = False, gradients: bool = False) -> Iterator[None]:
        if not self.zero._swappable_optimizer_subgroup(master):  # not on NVMe, or too small for it
            yield
            return
        self.zero._optimizer_states_and_gradient_swap_in(master)
        try:
            yield
        finally:
            self.zero._writeback_swap_state(master, write_opt_state=state, write_gradients=gradients)

    def gradients(self, master: int) -> list[tuple[int, torch.Tensor]]:
        if self.zero.offload_optimizer:
            return [(0, self.masters[master].grad)]
        return _one_after_the_other(self.zero.averaged_gradients[master])

    def publish(self) -> None:
        self.zero._partition_all_parameters()
        for master in range(len(self.masters)):
            with self.present(master):
                self.zero._reassign_or_swap_out_partitioned_parameters(master)
        kept_whole = self.zero.persistent_parameters
        if kept_whole:
            kept_whole[0].all_gather(kept_whole)


def _cut(
    master: int,
    parameters: list[torch.nn.Parameter],
    offsets: list[int],
    size: int,
    names: dict[torch.nn.Parameter, str],
) -> Iterator[Piece]:
    """Yield this rank's pieces of parameters that lie at `offsets` of a flat tensor cut into parts of `size`."""
    begin = dist.get_rank() * size
    for parameter, offset in zip(parameters, offsets, strict=True):
        first, past = max(offset, begin), min(offset + parameter.numel(), begin + size)
        if first < past:
            shape = tuple(parameter.shape)
            yield Piece(names[parameter], shape, first - offset, past - first, master, first - begin)


def _one_after_the_other(tensors: list[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    placed, position = [], 0
    for tensor in tensors:
        placed.append((position, tensor))
        position += tensor.numel()
    return placed
