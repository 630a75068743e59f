"""Which attention kernel a run uses: what is asked for where it works, else SDPA, said once."""

import functools
import importlib.util
import logging
from collections.abc import Callable

import torch

from llama_train.config import AttentionName, EngineConfig, ModelConfig, Precision
from llama_train.model.attention import MASKS, Mask, sdpa_mask

LOG = logging.getLogger(__name__)


def choose_attention(
    config: EngineConfig, model: ModelConfig, device_type: str, speaks: bool = True
) -> Callable[[torch.Tensor], Mask]:
    """Return what makes masks of document ids for the chosen kernel.

    Without document masks every choice computes the same: SDPA's causal kernel.

    Args:
        speaks: whether this process logs that it does not use what was asked for.
    """
    chosen = config.attention
    if chosen is AttentionName.auto:
        # Flash attention's own way with documents first. A dense mask works everywhere.
        usable = why_not(AttentionName.varlen, config.precision, model.head_dim, device_type) is None
        chosen = AttentionName.varlen if usable else AttentionName.sdpa
    elif reason := why_not(chosen, config.precision, model.head_dim, device_type):
        if speaks:
            LOG.warning("engine.attention=%s: %s; using engine.attention=sdpa", chosen.name, reason)
        chosen = AttentionName.sdpa
    if chosen is not AttentionName.sdpa:
        return MASKS[chosen.name]
    if config.compile:
        # The lengths of documents would be compiled in, and every batch has others.
        return MASKS["dense"]
    return functools.partial(sdpa_mask, width=model.heads * model.head_dim)


def why_not(name: AttentionName, precision: Precision, head_dim: int, device_type: str) -> str | None:
    """Return why an attention kernel cannot train here, None where it can."""
    if name is AttentionName.flex:
        if device_type != "cuda":
            return f"FlexAttention has no backward pass on {device_type}"
        if precision is Precision.fp64:
            return "FlexAttention has no float64"
        if head_dim < 16:
            return f"FlexAttention needs heads of at least 16 elements, not {head_dim}"
    if name is AttentionName.varlen:
        if device_type != "cuda":
            return f"variable-length flash attention does not exist on {device_type}"
        if importlib.util.find_spec("torch.nn.attention.varlen") is None:
            return f"torch {torch.__version__} has no torch.nn.attention.varlen"
        if precision is not Precision.bf16:
            return f"flash attention computes in bfloat16, not in engine.precision={precision.name}"
        if head_dim % 8 or head_dim > 256:
            return f"flash attention needs heads of a multiple of 8 and at most 256 elements, not {head_dim}"
        if torch.cuda.get_device_capability() < (8, 0):
            return f"flash attention needs compute capability 8.0, which {torch.cuda.get_device_name()} has not"
    return None
