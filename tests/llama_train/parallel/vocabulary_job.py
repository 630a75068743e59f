"""One tensor rank that computes embedding, logits and loss on its part of a vocabulary."""

from typing import Any

import torch
import torch.distributed as dist

from llama_train.config import LayoutConfig
from llama_train.parallel.layout import Layout, make_groups
from llama_train.parallel.vocabulary import VocabularyParallel, padded_vocabulary


def compute(rank: int, ranks: int, size: int, inputs: dict[str, Any], chunk: int, twice: bool) -> dict[str, Any]:
    """Return what this rank gets; gradients of its rows without those that fill up."""
    group = dist.new_group(list(range(ranks)))
    rows = padded_vocabulary(size, ranks) // ranks
    part = VocabularyParallel(size, rank, ranks, group)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    whole = torch.zeros(rows * ranks, tensors["weight"].shape[1], dtype=torch.float64)
    whole[:size] = tensors["weight"]
    weight = whole[rank * rows : (rank + 1) * rows].clone().requires_grad_()
    hidden = tensors["hidden"].clone().requires_grad_()
    embedded = part.embed(tensors["tokens"], weight.detach())
    dist.all_reduce(embedded)
    loss, count = part.loss(hidden, weight, tensors["labels"], chunk, twice)
    (3 * loss).backward(retain_graph=twice)
    if twice:
        first = hidden.grad.clone()
        hidden.grad = weight.grad = None
        (3 * loss).backward()
        assert torch.equal(first, hidden.grad)
    dist.all_reduce(hidden.grad)  # a summand on every rank
    with torch.no_grad():
        evaluated, _ = part.loss(hidden, weight, tensors["labels"], chunk, twice)
    filled = weight.grad[max(size - rank * rows, 0) :]
    return {
        "embedded": embedded.numpy(),
        "loss": float(loss),
        "evaluated": float(evaluated),
        "count": int(count),
        "hidden": hidden.grad.numpy(),
        "weight": weight.grad[: max(size - rank * rows, 0)].numpy(),
        "filled": float(filled.abs().sum()),
        "logits": part.logits(hidden, weight).numpy(),
    }


def compute_all(rank: int, ranks: int, inputs: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute for several vocabularies, chunks and ways of going backward."""
    return [
        compute(rank, ranks, size, inputs[size], chunk, twice)
        for size in inputs
        for chunk, twice in ((0, False), (3, False), (4, True))
    ]


def hang(rank: int, axes: dict[str, int], seconds: float) -> dict[str, tuple[float, str]]:
    """Be rank 0 or 1 of groups in which rank 1 never answers; return seconds and error of every group."""
    import time

    layout = Layout(
        axes.get("data_replicate", 1),
        axes.get("data_shard", 1),
        rank,
        1,
        axes.get("pipeline", 1),
        axes.get("context", 1),
        axes.get("tensor", 1),
        LayoutConfig(),
    )
    groups = make_groups(layout, torch.device("cpu"), seconds, tied_embeddings=True)
    found = {
        "pipeline": groups.pipeline,
        "context": groups.context,
        "tensor": groups.tensor,
        "ends": groups.ends,
        "shard": groups.shard_mesh.get_group("shard"),
    }
    if layout.data_replicate > 1:
        found["replicate"] = groups.shard_mesh.get_group("replicate")
    answers = {}
    for name, group in found.items():
        if group is None or dist.get_world_size(group) == 1:
            continue
        if rank == 1:
            continue
        began = time.monotonic()
        try:
            if name == "pipeline":
                dist.recv(torch.zeros(1), group=group, group_src=1)
            else:
                dist.all_reduce(torch.ones(1), group=group)
        except RuntimeError as error:
            answers[name] = (time.monotonic() - began, str(error))
    return answers
