"""Gradients that are still summands when the backward pass is done, added up."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from llama_train.model.llama import Llama
from llama_train.parallel.layout import Groups, Layout
from llama_train.parallel.tensor import summed_parameters


def add_up_summands(models: dict[int, Llama], layout: Layout, groups: Groups) -> None:
    """Sum the gradients of weights that tensor ranks hold whole, and of a tied embedding at both ends of a pipeline.

    FSDP2 has cut them alike on all these ranks, so their local slices are added.
    """
    if groups.tensor is not None:
        for model in models.values():
            _all_reduce([_local_gradient(each) for each in summed_parameters(model, layout)], groups.tensor)
    if layout.pipeline > 1:
        _tied_ends(models, groups)


def _tied_ends(models: dict[int, Llama], groups: Groups) -> None:
    ends = []
    for model in models.values():
        if not model.model.config.tied_embeddings:
            return
        if model.model.embed_tokens is not None:
            ends.append(_local_gradient(model.model.embed_tokens.weight))
        if model.lm_head is not None:
            ends.append(_local_gradient(model.lm_head.weight))
    if len(ends) == 2:
        ends[0].add_(ends[1])
        ends[1].copy_(ends[0])
    elif ends and groups.ends is not None:
        _all_reduce(ends, groups.ends)


def _local_gradient(parameter: nn.Parameter) -> torch.Tensor:
    """Return this rank's slice of the gradient; zeros where there was none to compute."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    gradient = parameter.grad
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _all_reduce(tensors: list[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Sum small tensors with one message."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
