"""A Llama as Meta's papers and params.json describe it, written for tests only: float64, neighbouring rotary pairs.

It shares nothing with the package: weights are a dictionary under Meta's names, rotation is by complex numbers.
"""

import math

import torch


def random_weights(params, vocabulary, ffn, seed=0):
    """Whole tensors under Meta's names; `params` as in params.json."""
    generator = torch.Generator().manual_seed(seed)
    dim, head_dim = params["dim"], params["dim"] // params["n_heads"]
    keys = params.get("n_kv_heads", params["n_heads"]) * head_dim

    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=generator) * 0.2

    weights = {"tok_embeddings.weight": matrix(vocabulary, dim)}
    for layer in range(params["n_layers"]):
        weights |= {
            f"layers.{layer}.attention.wq.weight": matrix(dim, dim),
            f"layers.{layer}.attention.wk.weight": matrix(keys, dim),
            f"layers.{layer}.attention.wv.weight": matrix(keys, dim),
            f"layers.{layer}.attention.wo.weight": matrix(dim, dim),
            f"layers.{layer}.feed_forward.w1.weight": matrix(ffn, dim),
            f"layers.{layer}.feed_forward.w2.weight": matrix(dim, ffn),
            f"layers.{layer}.feed_forward.w3.weight": matrix(ffn, dim),
            f"layers.{layer}.attention_norm.weight": matrix(1, dim)[0] + 1,
            f"layers.{layer}.ffn_norm.weight": matrix(1, dim)[0] + 1,
        }
    return weights | {"norm.weight": matrix(1, dim)[0] + 1, "output.weight": matrix(vocabulary, dim)}


def split(weights, files, embedding_axis):
    """Cut whole tensors as fairscale's parallel layers hold them."""
    parts = [{} for _ in range(files)]
    for name, tensor in weights.items():
        kind = name.split(".")[-2]
        if kind in ("attention_norm", "ffn_norm", "norm", "freqs"):
            pieces = [tensor] * files
        elif kind in ("wo", "w2"):
            pieces = tensor.chunk(files, dim=1)
        else:
            pieces = tensor.chunk(files, dim=embedding_axis if kind == "tok_embeddings" else 0)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def logits(params, weights, tokens):
    """[B, S] tokens to float64 logits [B, S, V]."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads = params["n_heads"]
    keys = params.get("n_kv_heads", heads)
    size = params["dim"] // heads
    length = tokens.shape[1]
    frequencies = [params.get("rope_theta", 10000.0) ** (-2 * i / size) for i in range(size // 2)]
    if params.get("use_scaled_rope"):
        frequencies = [slowed(f, params.get("rope_scaling_factor", 8.0)) for f in frequencies]
    angles = torch.arange(length, dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None, :]
    mask = torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)

    def normed(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * weight

    def rotated(x):  # [B, S, heads, size]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], size // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).reshape(x.shape)

    x = w["tok_embeddings.weight"][tokens]
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}."
        y = normed(x, w[at + "attention_norm.weight"])
        q = rotated((y @ w[at + "attention.wq.weight"].T).unflatten(-1, (heads, size)))
        k = rotated((y @ w[at + "attention.wk.weight"].T).unflatten(-1, (keys, size)))
        v = (y @ w[at + "attention.wv.weight"].T).unflatten(-1, (keys, size))
        k, v = (z.repeat_interleave(heads // keys, dim=2) for z in (k, v))
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(size) + mask
        mixed = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v).flatten(2)
        x = x + mixed @ w[at + "attention.wo.weight"].T
        y = normed(x, w[at + "ffn_norm.weight"])
        gate = y @ w[at + "feed_forward.w1.weight"].T
        x = x + (gate * gate.sigmoid() * (y @ w[at + "feed_forward.w3.weight"].T)) @ w[at + "feed_forward.w2.weight"].T
    return normed(x, w["norm.weight"]) @ w["output.weight"].T


def slowed(frequency, factor):
    """Llama 3.1: by wavelength against 8192 tokens, low factor 1, high factor 4."""
    wavelength = 2 * math.pi / frequency
    if wavelength < 8192 / 4:
        return frequency
    if wavelength > 8192:
        return frequency / factor
    smooth = (8192 / wavelength - 1) / (4 - 1)
    return (1 - smooth) * frequency / factor + smooth * frequency
