"""One rank of a ring: attention and its gradients, and those of one process for the same tokens."""

from typing import NamedTuple

import torch
import torch.distributed as dist

from llama_train.config import ContextMethod, LayoutConfig
from llama_train.model.attention import attention
from llama_train.parallel.context import own_tokens
from llama_train.parallel.layout import Layout
from llama_train.parallel.ring import Ring


class Compared(NamedTuple):
    """Largest differences of one rank from one process."""

    output: float
    q: float
    k: float
    v: float


def attend(rank: int, size: int, kv_heads: int, dtype: torch.dtype) -> Compared:
    generator = torch.Generator().manual_seed(0)

    def random(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, 8 * size, 8, generator=generator, dtype=torch.float64)

    q, k, v, gradient = random(4), random(kv_heads), random(kv_heads), random(4)
    whole = [x.requires_grad_() for x in (q, k, v)]
    expected = attention(*whole, None)
    expected.backward(gradient)
    layout = Layout(1, 1, rank, 1, context=size, config=LayoutConfig(context_method=ContextMethod.ring))
    own = own_tokens(8 * size, layout)
    parts = [x.detach()[:, :, own].to(dtype).requires_grad_() for x in whole]
    found = Ring(size, rank, dist.group.WORLD)(*parts, None)
    found.backward(gradient[:, :, own].to(dtype))
    pairs = [(found, expected), *((part.grad, x.grad) for part, x in zip(parts, whole, strict=True))]
    return Compared(*(float((a.detach() - b.detach()[:, :, own]).abs().max()) for a, b in pairs))
