"""Canonical parameter names: Hugging Face Llama's, whatever wraps the modules, and their unpadded shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_train.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What checkpoint_wrapper, torch.compile and FSDP1 put into the names of the parameters below them."""


def canonical_name(name: str) -> str:
    """Strip what wrappers put into a parameter's name."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def canonical_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (canonical name, parameter) in the order of the modules, a parameter that is used twice once."""
    for name, parameter in model.named_parameters():
        yield canonical_name(name), parameter


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the unpadded shape of every parameter by canonical name, from the configuration alone.

    Weights of linear layers are [outputs, inputs]. Tied embeddings appear once, as `model.embed_tokens.weight`.
    """
    hidden, ffn = config.hidden_size, config.ffn_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.layers):
        block = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def is_norm(name: str) -> bool:
    """Whether the parameter of this canonical name is the weight of an RMSNorm."""
    return name.endswith("norm.weight")


def decays(name: str) -> bool:
    """Whether weight decay applies to the parameter of this canonical name: to all but the norms."""
    return not is_norm(name)
