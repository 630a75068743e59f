"""config.json of a Hugging Face Llama, to and from our `ModelConfig`.

Rotary settings are written as `rope_theta` and `rope_scaling`, the form of transformers 4, which 5 reads as well; both
that form and the `rope_parameters` of 5 are read.
"""

from pathlib import Path
from typing import Any

from llama_foundation.errors import CheckpointError, ConfigError
from llama_train.config import ModelConfig, RopeScaling

MAX_SHARD_BYTES = 5_000_000_000
"""Of one safetensors file."""

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
}
# what our Llama does not have, and the only value that means so
_ABSENT = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "sliding_window": None,
}


def to_huggingface(config: ModelConfig, dtype: str, bos: int | None, eos: int | None) -> dict[str, Any]:
    """Return the contents of config.json.

    Args:
        dtype: of the stored weights, such as "bfloat16".
        bos, eos: token ids, None without a tokenizer.
    """
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initial_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": None,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def from_huggingface(value: dict[str, Any], where: Path) -> ModelConfig:
    """Return the model that a config.json describes; `where` names the file in errors.

    Raises:
        CheckpointError: it is no Llama, or has something that our Llama does not have.
    """
    if value.get("model_type") != "llama":
        raise CheckpointError(f"{where}: model_type={value.get('model_type')!r}; only llama can be read")
    for field, without in _ABSENT.items():
        if value.get(field, without) not in (without, None):
            raise CheckpointError(f"{where}: {field}={value[field]!r} is not supported; only {without!r} is")
    sizes = {ours: above_zero(value, theirs, int, where) for ours, theirs in _SIZES.items()}
    heads = sizes["heads"]
    rope = value.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{where}: rope_parameters is not an object")
    config = ModelConfig(
        name=where.parent.name or "huggingface",
        **sizes,
        kv_heads=above_zero(value, "num_key_value_heads", int, where, heads),
        context=above_zero(value, "max_position_embeddings", int, where, 2048),
        norm_epsilon=above_zero(value, "rms_norm_eps", float, where, 1e-6),
        rope_theta=above_zero({"rope_theta": 10000.0} | _given(value, "rope_theta") | rope, "rope_theta", float, where),
        rope_scaling=_rope_scaling(value.get("rope_scaling") or rope, where),
        tied_embeddings=value.get("tie_word_embeddings") is True,
        initial_std=above_zero(value, "initializer_range", float, where, 0.02),
    )
    try:
        config.check()
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
    head_dim = value.get("head_dim")
    if head_dim not in (None, config.head_dim):
        raise CheckpointError(
            f"{where}: head_dim={head_dim!r} is not supported; only hidden_size/num_attention_heads is, "
            f"{config.head_dim}"
        )
    return config


def _rope_scaling(value: Any, where: Path) -> RopeScaling | None:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: rope_scaling is not an object")
    kind = value.get("rope_type", value.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"{where}: rope_type={kind!r} is not supported; only default and llama3 are")
    return RopeScaling(
        factor=above_zero(value, "factor", float, where),
        low_freq_factor=above_zero(value, "low_freq_factor", float, where),
        high_freq_factor=above_zero(value, "high_freq_factor", float, where),
        original_context=above_zero(value, "original_max_position_embeddings", int, where),
    )


def _given(value: dict[str, Any], field: str) -> dict[str, Any]:
    return {field: value[field]} if value.get(field) is not None else {}


def above_zero(value: dict[str, Any], field: str, kind: type, where: Path, default: Any = None) -> Any:
    """Return a field of a foreign configuration as `kind`, int or float.

    Raises:
        CheckpointError: it is no number above 0, or missing without a default.
    """
    found = value.get(field)
    if found is None:
        found = default
    if isinstance(found, bool) or not isinstance(found, int if kind is int else int | float) or not 0 < found < 1e300:
        raise CheckpointError(f"{where}: {field}={repr(found)[:80]} must be a number above 0")
    return kind(found)
