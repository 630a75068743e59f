"""How Meta's files hold a Llama: their names of tensors, how they are split over files, and the order of rotary rows.

The names and splits are those of the Transformer classes of meta-llama/llama and meta-llama/llama3 under fairscale's
model parallelism: a column-parallel layer is split by its outputs (axis 0), a row-parallel one by its inputs (axis 1).
Llama 1 and 2 split the embedding by columns (ParallelEmbedding), Llama 3 by rows (VocabParallelEmbedding).
"""

from collections.abc import Iterator

import torch

from llama_train.config import ModelConfig

EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"
FIRST_KEYS, FIRST_GATE = "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"
IGNORED = "rope.freqs"
"""A table that Llama 1 and 2 saved; it follows from params.json."""

_LAYER = {
    "attention_norm": ("input_layernorm", None),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "ffn_norm": ("post_attention_layernorm", None),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
}


def meta_names(config: ModelConfig, tied_copy: bool = False) -> Iterator[tuple[str, str, int | None]]:
    """Yield (Meta's name, canonical name, axis along which files split it or None) for every tensor.

    The embedding is given axis 0; see above.

    Args:
        tied_copy: yield the output matrix of a tied model too, as Meta's files hold it: the embedding a second time.
    """
    yield EMBEDDING, "model.embed_tokens.weight", 0
    for layer in range(config.layers):
        for theirs, (ours, axis) in _LAYER.items():
            yield f"layers.{layer}.{theirs}.weight", f"model.layers.{layer}.{ours}.weight", axis
    yield "norm.weight", "model.norm.weight", None
    if not config.tied_embeddings:
        yield OUTPUT, "lm_head.weight", 0
    elif tied_copy:
        yield OUTPUT, "model.embed_tokens.weight", 0


def is_rotary(name: str) -> bool:
    """Whether the rows of the matrix of this canonical name are rotated: those of queries and keys."""
    return name.endswith(("q_proj.weight", "k_proj.weight"))


def is_key_or_value(name: str) -> bool:
    """Whether the matrix of this canonical name has a block of rows for each key/value head."""
    return name.endswith(("k_proj.weight", "v_proj.weight"))


def halves_from_pairs(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder whole heads from Meta's rows to ours.

    Meta rotates neighbouring elements (2i, 2i + 1) of a head against each other, we (and Hugging Face) i against
    i + E/2 by the same angle. So Meta's even rows come first, then its odd ones. `rows` is [heads * head_dim, columns].
    """
    return rows.reshape(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def pairs_from_halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Undo `halves_from_pairs`."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
