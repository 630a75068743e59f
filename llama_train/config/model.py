"""The shape of a Llama."""

from dataclasses import dataclass

from omegaconf import MISSING

from llama_foundation.errors import ConfigError
from llama_train.config.checks import at_least


@dataclass
class RopeScaling:
    """Llama 3.1's frequency scaling (meta-llama/llama-models, models/llama3/model.py, apply_scaling)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens


@dataclass
class ModelConfig:
    """The shape of a Llama. Sizes are in elements; `context` is the longest sequence it is made for, in tokens."""

    name: str = MISSING
    vocab_size: int = MISSING
    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    ffn_size: int = MISSING
    context: int = MISSING
    norm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    initial_std: float = 0.02  # no Llama paper publishes its initial weights: assumed

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def check(self) -> None:
        for name in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "ffn_size", "context"):
            at_least(f"model.{name}", getattr(self, name), 1)
        if self.hidden_size % self.heads:
            raise ConfigError(
                f"model.heads={self.heads} does not divide model.hidden_size={self.hidden_size}; "
                f"use one of {_divisors(self.hidden_size, at_most=256)}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"model.hidden_size={self.hidden_size} over model.heads={self.heads} gives heads of "
                f"{self.head_dim} elements; rotary embeddings need an even number"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; "
                f"use one of {_divisors(self.heads, at_most=self.heads)}"
            )


def _divisors(number: int, at_most: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, at_most) + 1) if number % n == 0)
