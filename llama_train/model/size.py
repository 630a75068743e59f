"""How large a model is: parameters, floating-point operations, bytes. Exact, and from the configuration alone.

A multiplication and an addition count as two operations. What is not a matrix multiplication (norms, rotary
embeddings, softmax, silu) is not counted; PaLM (Chowdhery et al. 2022, appendix B) leaves it out as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from llama_train.config import ModelConfig
from llama_train.model.names import parameter_shapes


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def non_embedding_parameters(config: ModelConfig) -> int:
    """Return the number of parameters without the embedding and the output head."""
    matrices = 1 if config.tied_embeddings else 2
    return parameter_count(config) - matrices * config.vocab_size * config.hidden_size


@dataclass(frozen=True)
class TokenFlops:
    """Operations of one token's forward pass, by term. A backward pass has exactly twice as many.

    `attention_full` are those of scores and values when every query is multiplied with every key, as kernels without
    block skipping do; `attention_causal` leaves out the keys that come later, on average over a sequence.
    """

    attention_projections: int
    feed_forward: int
    head: int
    attention_full: int
    attention_causal: int

    @property
    def matmul(self) -> int:
        """Everything that is multiplied with a weight."""
        return self.attention_projections + self.feed_forward + self.head


def forward_flops(config: ModelConfig, sequence_length: int) -> TokenFlops:
    """Count the operations of a forward pass per token of a sequence without document masks."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    projections = 2 * config.hidden_size * (queries + keys + keys) + 2 * queries * config.hidden_size
    # Scores and weighted values: 2 operations each per element of a head and key seen.
    per_key = 4 * config.layers * queries
    return TokenFlops(
        attention_projections=config.layers * projections,
        feed_forward=config.layers * 3 * 2 * config.hidden_size * config.ffn_size,
        head=2 * config.hidden_size * config.vocab_size,
        attention_full=per_key * sequence_length,
        attention_causal=per_key * (sequence_length + 1) // 2,
    )


def full_attention(config: ModelConfig, sequence_length: int) -> int:
    """Count training operations per token, forward and backward, every key for every query."""
    flops = forward_flops(config, sequence_length)
    return 3 * (flops.matmul + flops.attention_full)


def causal_attention(config: ModelConfig, sequence_length: int) -> int:
    """Count training operations per token, forward and backward, only the keys that a query may see."""
    flops = forward_flops(config, sequence_length)
    return 3 * (flops.matmul + flops.attention_causal)


def palm_full_attention(config: ModelConfig, sequence_length: int) -> int:
    """Return 6N + 12LHQT (Chowdhery et al. 2022, appendix B): N parameters, L layers, H heads of Q elements, T tokens.

    PaLM ties its embeddings, so its N counts their matrix once, for the head. An embedding of its own is only looked
    up: N is without it.
    """
    looked_up = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
    parameters = parameter_count(config) - looked_up
    return 6 * parameters + 12 * config.layers * config.heads * config.head_dim * sequence_length


MFU_FORMULAS: dict[str, Callable[[ModelConfig, int], int]] = {
    "palm_full_attention": palm_full_attention,
    "full_attention": full_attention,
    "causal_attention": causal_attention,
}
"""Training operations per token by the formula's name; a utilisation means nothing without that name."""


def model_flops_utilization(
    tokens_per_second: float, peak_flops: float, config: ModelConfig, sequence_length: int, formula: str
) -> float:
    """Return the part of the peak that the model's own operations use.

    Recomputation does not count as work, so activation checkpointing lowers it.

    Args:
        tokens_per_second: over all devices.
        peak_flops: operations per second of all devices together, dense, in the compute precision.
        formula: a key of `MFU_FORMULAS`.
    """
    return tokens_per_second * MFU_FORMULAS[formula](config, sequence_length) / peak_flops


@dataclass(frozen=True)
class TrainingBytes:
    """What training keeps for the whole model, over all ranks together, in bytes; activations are not in it."""

    weights: int
    gradients: int
    optimizer: int  # both AdamW moments

    @property
    def checkpoint(self) -> int:
        """What a checkpoint stores: gradients are gone by then."""
        return self.weights + self.optimizer

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def training_bytes(config: ModelConfig, bytes_per_element: int = 4) -> TrainingBytes:
    """Count the bytes of weights, gradients and AdamW moments; 4 per element, also for bf16 compute, 8 for float64."""
    one = parameter_count(config) * bytes_per_element
    return TrainingBytes(weights=one, gradients=one, optimizer=2 * one)
