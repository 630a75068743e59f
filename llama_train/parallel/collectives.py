"""Collectives that gradients pass through, and that compiled code knows."""

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

# torch 2.13 has new names for two of them and warns of the old ones; 2.11 has only the old ones.
_all_gather = getattr(functional, "all_gather_single", None) or functional.all_gather_tensor
_all_gather_autograd = getattr(functional, "all_gather_single_autograd", None) or functional.all_gather_tensor_autograd
_reduce_scatter_autograd = (
    getattr(functional, "reduce_scatter_single_autograd", None) or functional.reduce_scatter_tensor_autograd
)


def _waited(x: torch.Tensor) -> torch.Tensor:
    """Wait for a result here: compiled code does not know the tensor that is still on its way (pytorch issue 180614).

    While torch traces it waits by itself, and a second time would hide the multiplication behind the message from the
    compiler, which fuses the two for `engine.async_tensor_parallel`.
    """
    return x if torch.compiler.is_compiling() else functional.wait_tensor(x)


def gathered(x: torch.Tensor, dimension: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the slices of all ranks joined along `dimension`; backward sums the gradients and cuts them."""
    return _waited(_all_gather_autograd(x.contiguous(), dimension, group))


def gathered_without_gradient(x: torch.Tensor, dimension: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the slices of all ranks joined along `dimension`."""
    return _waited(_all_gather(x.contiguous(), dimension, group))


def summed_and_cut(x: torch.Tensor, dimension: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Return this rank's slice along `dimension` of the sum over the ranks; backward gathers."""
    return _waited(_reduce_scatter_autograd(x.contiguous(), "sum", dimension, group))


def exchanged(x: torch.Tensor, group: dist.ProcessGroup, ranks: int) -> torch.Tensor:
    """Send the i-th of `ranks` equal parts of a flat tensor to rank i; return what came, in the order of the ranks."""
    sizes = [x.numel() // ranks] * ranks
    return _waited(functional.all_to_all_single_autograd(x, sizes, sizes, group))


def reduced(x: torch.Tensor, operation: str, group: dist.ProcessGroup) -> torch.Tensor:
    """Return "sum" or "max" over the ranks; without gradients."""
    return _waited(functional.all_reduce(x, operation, group))


def passed_on(x: torch.Tensor, group: dist.ProcessGroup, ranks: int) -> torch.Tensor:
    """Begin to send a tensor to the next of `ranks` ranks, the last one's to the first; without gradients.

    Returns:
        What comes from the rank before, flat and perhaps still on its way: for `arrived`.
    """
    return functional.permute_tensor(x.flatten(), [(rank + 1) % ranks for rank in range(ranks)], group)


def arrived(flat: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Wait for what `passed_on` has begun to receive; return it in its shape."""
    return functional.wait_tensor(flat).view(shape)
