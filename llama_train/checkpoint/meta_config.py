"""params.json of a model as Meta publishes it, to and from our `ModelConfig`.

The rules are those of the ModelArgs and FeedForward of meta-llama's repositories: llama (the branches llama_v1 and
main), llama3, and llama-models (models/llama3, which scales rotary frequencies).
"""

from pathlib import Path
from typing import Any

from llama_foundation.errors import CheckpointError, ConfigError
from llama_train.checkpoint.huggingface_config import above_zero
from llama_train.config import ModelConfig, RopeScaling

_SCALED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
_FACTOR_OF_TIED = 32.0  # Llama 3.2 1B and 3B: the only ones with tied embeddings, and the only ones with this factor

# (multiple_of, ffn_dim_multiplier) of the published models
_PUBLISHED_FFN = [(256, None), (256, 1.0), (256, 1.5), (1024, 1.3), (4096, 1.2), (4096, 1.3)]
# what these releases were trained with: params.json does not say
_LLAMA_1, _LLAMA_2, _CODE_LLAMA, _LLAMA_3, _LLAMA_3_1 = 2048, 4096, 16384, 8192, 131072

_KNOWN = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "use_scaled_rope",
    "rope_scaling_factor",
    "rope_high_freq_factor",
    "max_seq_len",
    "max_batch_size",
}


def ffn_size(hidden_size: int, multiple_of: int, multiplier: float | None) -> int:
    """Return the width of the feed-forward layer (FeedForward.__init__ in meta-llama/llama, llama/model.py)."""
    width = int(2 * (4 * hidden_size) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def ffn_rule(hidden_size: int, width: int) -> tuple[int, float | None]:
    """Return a (multiple_of, ffn_dim_multiplier) that gives `width`: a published pair if one does."""
    for multiple_of, multiplier in _PUBLISHED_FFN:
        if ffn_size(hidden_size, multiple_of, multiplier) == width:
            return multiple_of, multiplier
    multiplier = (width + 0.5) / int(8 * hidden_size / 3)
    assert ffn_size(hidden_size, 1, multiplier) == width, (hidden_size, width)
    return 1, multiplier


def to_params(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of params.json. The context is not among them; whoever runs the model chooses it.

    Raises:
        ConfigError: the rotary scaling has numbers that are constants in Meta's code.
    """
    multiple_of, multiplier = ffn_rule(config.hidden_size, config.ffn_size)
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
    }
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    scaling = config.rope_scaling
    if scaling is None:
        return params
    for field in ("low_freq_factor", "original_context"):
        if getattr(scaling, field) != getattr(_SCALED, field):
            raise ConfigError(
                f"model.rope_scaling.{field}={getattr(scaling, field)}: params.json cannot say so, Meta's code has "
                f"{getattr(_SCALED, field)}; use to=huggingface"
            )
    params["use_scaled_rope"] = True
    if scaling.factor != _SCALED.factor:
        params["rope_scaling_factor"] = scaling.factor
    if scaling.high_freq_factor != _SCALED.high_freq_factor:
        params["rope_high_freq_factor"] = scaling.high_freq_factor
    return params


def from_params(
    params: dict[str, Any], where: Path, vocab_size: int, tied: bool, context: int | None = None
) -> ModelConfig:
    """Return the model that a params.json describes; `where` names the file in errors.

    Args:
        vocab_size: rows of the embedding, which params.json may leave out or give as -1.
        tied: whether the output matrix is the embedding.
        context: tokens; None: max_seq_len if it is given, else what the release of these settings was trained with.

    Raises:
        CheckpointError: a setting is unknown, missing or contradicts the weights.
    """
    unknown = sorted(key for key, value in params.items() if key not in _KNOWN and value is not None)
    if unknown:
        raise CheckpointError(
            f"{where}: {unknown[0]}={params[unknown[0]]!r} is not supported: it is not known what it changes; known: "
            f"{', '.join(sorted(_KNOWN))}"
        )
    if params.get("vocab_size", -1) not in (-1, vocab_size):
        raise CheckpointError(
            f"{where}: vocab_size={params['vocab_size']!r}, but the embeddings have {vocab_size} rows; is a "
            "consolidated file missing?"
        )
    heads = above_zero(params, "n_heads", int, where)
    hidden = above_zero(params, "dim", int, where)
    multiplier = above_zero(params, "ffn_dim_multiplier", float, where) if params.get("ffn_dim_multiplier") else None
    theta = above_zero(params, "rope_theta", float, where, 10000.0)
    epsilon = above_zero(params, "norm_eps", float, where, 1e-5)
    scaling = _rope_scaling(params, where, tied)
    if context is None:
        context = above_zero(params, "max_seq_len", int, where, _context(theta, epsilon, scaling))
    config = ModelConfig(
        name=where.parent.name or "meta",
        vocab_size=vocab_size,
        hidden_size=hidden,
        layers=above_zero(params, "n_layers", int, where),
        heads=heads,
        kv_heads=above_zero(params, "n_kv_heads", int, where, heads),
        ffn_size=ffn_size(hidden, above_zero(params, "multiple_of", int, where, 256), multiplier),
        context=context,
        norm_epsilon=epsilon,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=tied,
    )
    try:
        config.check()
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return config


def _rope_scaling(params: dict[str, Any], where: Path, tied: bool) -> RopeScaling | None:
    used = params.get("use_scaled_rope", False)
    if not isinstance(used, bool):
        raise CheckpointError(f"{where}: use_scaled_rope={used!r} must be true or false")
    if not used:
        return None
    factor = _FACTOR_OF_TIED if tied else _SCALED.factor
    return RopeScaling(
        factor=above_zero(params, "rope_scaling_factor", float, where, factor),
        low_freq_factor=_SCALED.low_freq_factor,
        high_freq_factor=above_zero(params, "rope_high_freq_factor", float, where, _SCALED.high_freq_factor),
        original_context=_SCALED.original_context,
    )


def _context(theta: float, epsilon: float, scaling: RopeScaling | None) -> int:
    if scaling is not None:
        return _LLAMA_3_1
    if theta == 10000.0:
        return _LLAMA_1 if epsilon == 1e-6 else _LLAMA_2
    return _CODE_LLAMA if theta == 1_000_000.0 else _LLAMA_3
