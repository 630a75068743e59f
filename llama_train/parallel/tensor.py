"""Tensor parallelism with sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022).

Between the sublayers every tensor rank holds a slice of the sequence; inside a sublayer it holds all tokens and a
slice of the heads or of the feed-forward's width:

    hidden [B, S/t, D] ──all-gather──▶ [B, S, D] ─▶ attention or feed-forward on 1/t of the weights ─▶ a summand of
    [B, S, D] ──reduce-scatter──▶ [B, S/t, D]

The backward pass of each of the two is the other, so gradients come out summed. Norms see slices of the sequence: their
weights are on all ranks, and their gradients are summands, which `summed_parameters` names.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from llama_train.config import ModelConfig
from llama_train.model.llama import Llama
from llama_train.parallel.collectives import gathered, summed_and_cut
from llama_train.parallel.layout import Layout, replicates_kv
from llama_train.parallel.vocabulary import VocabularyParallel, padded_vocabulary

SEQUENCE = 1  # the dimension of [B, S, D] that is cut


@dataclass(frozen=True)
class Slice:
    """Which part of a parameter a rank holds: `length` of its `dimension`, from `start` on, and zeros behind it."""

    dimension: int | None  # None: all of it, on every tensor rank
    start: int = 0
    length: int = 0
    owner: bool = True  # of several ranks with the same part, the one that writes it


PLAN = {
    "embed_tokens": 0,
    "input_layernorm": None,
    "q_proj": 0,
    "k_proj": 0,
    "v_proj": 0,
    "o_proj": 1,
    "post_attention_layernorm": None,
    "gate_proj": 0,
    "up_proj": 0,
    "down_proj": 1,
    "norm": None,
    "lm_head": 0,
}
"""The module of a parameter to the dimension of its weight [outputs, inputs] that is cut; None: whole on every rank."""


def tensor_slice(name: str, shape: tuple[int, ...], model: ModelConfig, layout: Layout) -> Slice:
    """Return what this rank holds of the parameter with this canonical name and unpadded shape."""
    module = name.split(".")[-2]
    dimension, rank = PLAN[module], layout.place["tensor"]
    if layout.tensor == 1:
        return Slice(None)
    if dimension is None or (module in ("k_proj", "v_proj") and replicates_kv(model, layout)):
        return Slice(None, owner=rank == 0)
    if module in ("embed_tokens", "lm_head"):
        rows = padded_vocabulary(model.vocab_size, layout.tensor) // layout.tensor
        start = min(rank * rows, model.vocab_size)
        return Slice(0, start, min(rows, model.vocab_size - start))
    length = shape[dimension] // layout.tensor
    return Slice(dimension, rank * length, length)


def summed_parameters(model: Llama, layout: Layout) -> Iterator[nn.Parameter]:
    """Yield the parameters whose gradients are summands over the tensor ranks: those that every rank holds whole."""
    if layout.tensor == 1:
        return
    config = model.model.config
    for name, parameter in model.named_parameters():
        module = name.split(".")[-2]
        if PLAN[module] is None or (module in ("k_proj", "v_proj") and replicates_kv(config, layout)):
            yield parameter


def apply_tensor_parallel(model: Llama, layout: Layout, group: dist.ProcessGroup | None) -> None:
    """Cut the weights of `model` (on the meta device) and put the collectives around its sublayers, in place."""
    if group is None:
        return
    config = model.model.config
    for block in model.blocks():
        for sublayer in (block.self_attn, block.mlp):
            sublayer.forward = _between_collectives(sublayer.forward, group)
        if replicates_kv(config, layout):
            _use_one_kv_head(block.self_attn, layout)
    for name, module in model.named_modules():
        dimension = PLAN.get(name.split(".")[-1])
        kept_whole = name.split(".")[-1] in ("k_proj", "v_proj") and replicates_kv(config, layout)
        if dimension is not None and not kept_whole:
            shape = list(module.weight.shape)
            if name.split(".")[-1] in ("embed_tokens", "lm_head"):
                shape[0] = padded_vocabulary(shape[0], layout.tensor)
            shape[dimension] //= layout.tensor
            module.weight = nn.Parameter(torch.empty(shape, dtype=module.weight.dtype, device=module.weight.device))
    vocabulary = VocabularyParallel(config.vocab_size, layout.place["tensor"], layout.tensor, group)
    if model.model.embed_tokens is not None:
        embedding = model.model.embed_tokens
        embedding.forward = lambda tokens: scatter(vocabulary.embed(tokens, embedding.weight), group)
    if model.model.norm is not None:
        model.head = lambda hidden, weight: vocabulary.logits(gather(hidden, group), weight)
        model.loss = lambda hidden, weight, labels: vocabulary.loss(
            gather(hidden, group), weight, labels, model.loss_chunk, model.loss_backward_twice
        )


def gather(x_BSD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the whole sequence from every rank's slice; backward sums the gradients and cuts them."""
    return gathered(x_BSD, SEQUENCE, group)


def scatter(x_BSD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Sum over the ranks and return this rank's slice of the sequence; backward gathers."""
    return summed_and_cut(x_BSD, SEQUENCE, group)


def _between_collectives(forward: Callable[..., torch.Tensor], group: dist.ProcessGroup) -> Callable[..., torch.Tensor]:
    def gathered_and_scattered(hidden_BSD: torch.Tensor, *others: Any) -> torch.Tensor:
        return scatter(forward(gather(hidden_BSD, group), *others), group)

    return gathered_and_scattered


def _use_one_kv_head(attention: nn.Module, layout: Layout) -> None:
    """Compute only the KV head that this rank's query heads read; the gradient of the other rows is zero."""
    elements = attention.head_dim
    for projection in (attention.k_proj, attention.v_proj):
        heads = projection.weight.shape[0] // elements
        head = layout.place["tensor"] * heads // layout.tensor
        rows = slice(head * elements, (head + 1) * elements)
        projection.forward = lambda hidden, projection=projection, rows=rows: F.linear(hidden, projection.weight[rows])
