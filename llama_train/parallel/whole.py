"""A model that is cut over tokens, weights or layers, called as if it were whole: for evaluation and generation."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from llama_train.model.llama import Llama
from llama_train.parallel.context import own_tokens
from llama_train.parallel.layout import Groups, Layout

if TYPE_CHECKING:
    from llama_train.parallel.pipeline import Pipeline


def splits(layout: Layout) -> bool:
    """Whether more than data parallelism is at work, so that no rank can compute logits by itself."""
    return layout.pipeline * layout.context * layout.tensor > 1


class WholeModel(nn.Module):
    """Tokens to logits on every rank; the ranks that differ in pipeline, context and tensor call it with the same."""

    def __init__(
        self,
        models: dict[int, Llama],
        layout: Layout,
        groups: Groups,
        pipeline: "Pipeline | None",
        device: torch.device,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({str(stage): model for stage, model in models.items()})
        self.layout = layout
        self.groups = groups
        self.pipeline = pipeline
        self.device = device  # where it computes; its weights may lie elsewhere

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, S, V] of tokens [B, S]; each row is one document, so filling it up changes nothing."""
        rows, length = tokens.shape
        tokens = tokens.to(self.device)
        if positions is None:
            positions = torch.arange(length, device=tokens.device).expand(rows, length)
        missing = -length % (2 * self.layout.context * self.layout.tensor)
        tokens, positions = F.pad(tokens, (0, missing)), F.pad(positions, (0, missing))
        if self.layout.context > 1:
            own = own_tokens(tokens.shape[1], self.layout).to(tokens.device)
            tokens, positions = tokens[:, own], positions[:, own]
        inputs = {"tokens": tokens, "positions": positions}
        logits = self.parts["0"](**inputs) if self.pipeline is None else self._through_the_pipeline(inputs)
        return self._all_tokens(logits)[:, :length]

    def _through_the_pipeline(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        rows, length = inputs["tokens"].shape
        config = next(iter(self.parts.values())).model.config
        logits = self.pipeline.forward(inputs)
        if logits is None:
            logits = torch.empty(rows, length, config.vocab_size, dtype=self.pipeline.dtype, device=self.device)
        logits = logits.contiguous()
        dist.broadcast(logits, group=self.groups.pipeline, group_src=self.pipeline.ranks[-1])
        return logits

    def _all_tokens(self, logits_BSV: torch.Tensor) -> torch.Tensor:
        if self.groups.context is None:
            return logits_BSV
        size = self.layout.context
        parts = [torch.empty_like(logits_BSV) for _ in range(size)]
        dist.all_gather(parts, logits_BSV.contiguous(), group=self.groups.context)
        joined = torch.cat(parts, dim=1)
        order = torch.cat([own_tokens(joined.shape[1], self.layout, rank) for rank in range(size)])
        return joined[:, torch.argsort(order).to(joined.device)]
