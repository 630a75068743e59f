"""The Llama architecture: the maths of a forward pass, and nothing else.

Llama (Touvron et al. 2023, section 2.2) is a Transformer decoder with RMSNorm before each sublayer (Zhang and Sennrich
2019), SwiGLU (Shazeer 2020), rotary embeddings (Su et al. 2021), since Llama 2 grouped-query attention (Ainslie et al.
2023) and since Llama 3.1 scaled rotary frequencies. Module names and the rotary layout (the first half of a head's
elements is rotated against the second half) are Hugging Face Llama's, so a weight means the same there and here.

Tensor names end in their shape:
    B batch        S sequence         D model (hidden_size)   V vocabulary
    H heads        K key/value heads  E elements of a head
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from llama_train.config import ModelConfig, RopeScaling
from llama_train.model.attention import Mask, attention, sdpa_mask
from llama_train.model.loss import IGNORE as IGNORE  # what a caller marks labels with
from llama_train.model.loss import chunked_loss, compute_dtype, summed_loss


class Llama(nn.Module):
    """Token ids to logits, or to a loss.

    A model may also be a part of a Llama: with `model.embed_tokens` set to None it takes hidden states in place of
    tokens, with `model.norm` set to None it gives hidden states, and `model.layers` holds whichever layers it has.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.loss_chunk = 0  # tokens whose logits are held at once for the loss; 0: all
        self.loss_backward_twice = False  # whether the loss is asked for gradients of inputs first, of weights later
        # Tied, the embedding's matrix is used in place of one here: sharing a parameter would not outlive to_empty().
        self.lm_head = None if config.tied_embeddings else _linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Compute logits, or with `labels` the summed loss.

        Args:
            tokens: [B, S] int32 or int64, as the others.
            labels: [B, S], the token that each position should predict; `IGNORE` does not count.
            document_ids: [B, S]; attention stays inside equal ids. None: each row is one document.
            positions: [B, S], of the rotary embedding. None: 0 to S-1.

        Returns:
            Without labels, logits [B, S, V] in the weights' dtype. With labels, (sum of the cross-entropy in nats as a
            float32 scalar, float64 for a float64 model; number of labels that count as an int64 scalar).
        """
        hidden_BSD = self.model(tokens, document_ids, positions)
        if self.model.norm is None:
            return hidden_BSD
        weight_VD = (self.model.embed_tokens if self.lm_head is None else self.lm_head).weight
        if labels is None:
            return self.head(hidden_BSD, weight_VD)
        return self.loss(hidden_BSD, weight_VD, labels)

    def head(self, hidden_BSD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Return logits [B, S, V]."""
        return F.linear(hidden_BSD, weight_VD)

    def loss(
        self, hidden_BSD: torch.Tensor, weight_VD: torch.Tensor, labels_BS: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `forward` does with labels."""
        if self.loss_chunk:
            return chunked_loss(hidden_BSD, weight_VD, labels_BS, self.loss_chunk, self.loss_backward_twice)
        return summed_loss(self.head(hidden_BSD, weight_VD), labels_BS)

    def blocks(self) -> Iterator["Block"]:
        """Yield the layers that this model holds, in order."""
        yield from self.model.layers.values()


class Decoder(nn.Module):
    """Embedding, layers and the last norm: everything before the logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Document ids to what `attention` takes as its mask.
        self.make_mask: Callable[[torch.Tensor], Mask] = partial(sdpa_mask, width=config.heads * config.head_dim)
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict({str(layer): Block(config) for layer in range(config.layers)})
        self.norm = RMSNorm(config)

    def forward(
        self, tokens: torch.Tensor, document_ids: torch.Tensor | None, positions: torch.Tensor | None
    ) -> torch.Tensor:
        hidden_BSD = tokens if self.embed_tokens is None else self.embed_tokens(tokens)
        if positions is None:
            positions = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)[None]
        cos_BSE, sin_BSE = rotation(positions, self.config, compute_dtype(hidden_BSD.dtype))
        mask = None if document_ids is None else self.make_mask(document_ids)
        for block in self.layers.values():
            hidden_BSD = block(hidden_BSD, cos_BSE, sin_BSE, mask)
        return hidden_BSD if self.norm is None else self.norm(hidden_BSD)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        hidden_BSD: torch.Tensor,
        cos_BSE: torch.Tensor,
        sin_BSE: torch.Tensor,
        mask: Mask,
    ) -> torch.Tensor:
        """Compute the layer. `cos_BSE` and `sin_BSE` should stay float32 for bf16 hidden states: see `rotate`."""
        hidden_BSD = hidden_BSD + self.self_attn(self.input_layernorm(hidden_BSD), cos_BSE, sin_BSE, mask)
        return hidden_BSD + self.mlp(self.post_attention_layernorm(hidden_BSD))


class Attention(nn.Module):
    """Causal self-attention; `heads // kv_heads` query heads share one key and value head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attend = attention
        self.q_proj = _linear(config.hidden_size, config.heads * config.head_dim)
        self.k_proj = _linear(config.hidden_size, config.kv_heads * config.head_dim)
        self.v_proj = _linear(config.hidden_size, config.kv_heads * config.head_dim)
        self.o_proj = _linear(config.heads * config.head_dim, config.hidden_size)

    def forward(
        self,
        hidden_BSD: torch.Tensor,
        cos_BSE: torch.Tensor,
        sin_BSE: torch.Tensor,
        mask: Mask,
    ) -> torch.Tensor:
        # The number of heads comes from the projection, not from the configuration: it may hold only some of them.
        q_BHSE = self.q_proj(hidden_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k_BKSE = self.k_proj(hidden_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        v_BKSE = self.v_proj(hidden_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q_BHSE = rotate(q_BHSE, cos_BSE, sin_BSE)
        k_BKSE = rotate(k_BKSE, cos_BSE, sin_BSE)
        attended_BHSE = self.attend(q_BHSE, k_BKSE, v_BKSE, mask)
        return self.o_proj(attended_BHSE.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = _linear(config.hidden_size, config.ffn_size)
        self.up_proj = _linear(config.hidden_size, config.ffn_size)
        self.down_proj = _linear(config.ffn_size, config.hidden_size)

    def forward(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden_BSD)) * self.up_proj(hidden_BSD))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon) * weight; the division in float32 at least, whatever x is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        wide_BSD = hidden_BSD.to(compute_dtype(hidden_BSD.dtype))
        wide_BSD = wide_BSD * torch.rsqrt(wide_BSD.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide_BSD.to(hidden_BSD.dtype)


def rotation(positions_BS: torch.Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosine and sine [B, S, E] of every position's rotary angles, in `dtype`.

    The angles are made in float64: in float32 an angle at position 100,000 is off by up to 0.007 radians.
    """
    frequencies_E = torch.tensor(rotary_frequencies(config) * 2, dtype=torch.float64, device=positions_BS.device)
    angles_BSE = positions_BS[..., None] * frequencies_E
    return angles_BSE.cos().to(dtype), angles_BSE.sin().to(dtype)


def rotate(x_BHSE: torch.Tensor, cos_BSE: torch.Tensor, sin_BSE: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle, in the precision of `cos_BSE` if that is the higher one."""
    first, second = x_BHSE.chunk(2, dim=-1)
    turned_BHSE = torch.cat((-second, first), dim=-1)
    return (x_BHSE * cos_BSE.unsqueeze(1) + turned_BHSE * sin_BSE.unsqueeze(1)).to(x_BHSE.dtype)


def rotary_frequencies(config: ModelConfig) -> list[float]:
    """Return the E/2 angles per position, theta^(-2i/E), in radians (Su et al. 2021, section 3.2.2)."""
    pairs = range(0, config.head_dim, 2)
    frequencies = [config.rope_theta ** (-pair / config.head_dim) for pair in pairs]
    if config.rope_scaling is None:
        return frequencies
    return [scaled_frequency(frequency, config.rope_scaling) for frequency in frequencies]


def scaled_frequency(frequency: float, scaling: RopeScaling) -> float:
    """Slow down the frequencies whose waves are long against the original context.

    Source: apply_scaling in meta-llama/llama-models, models/llama3/model.py. Waves longer than
    original_context/low_freq_factor tokens are slowed by `factor`, those shorter than
    original_context/high_freq_factor are kept, and between the two it is interpolated.
    """
    waves_in_context = scaling.original_context * frequency / (2 * math.pi)
    if waves_in_context < scaling.low_freq_factor:
        return frequency / scaling.factor
    if waves_in_context > scaling.high_freq_factor:
        return frequency
    kept = (waves_in_context - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        # Filling the meta device's nothing would import torch's compiler, which takes seconds.
        if not self.weight.is_meta:
            super().reset_parameters()


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return _Linear(inputs, outputs, bias=False)
