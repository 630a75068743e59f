"""What layers keep from the forward to the backward pass, in bytes, for every mode of recomputation.

Letters as in memory.py: n tokens of a micro-batch on one rank, t tensor ranks, D hidden_size, F ffn_size, S tokens of a
whole sequence.
"""

from collections.abc import Iterator

from llama_train.config import (
    ActivationCheckpointing,
    AttentionName,
    ContextMethod,
    EngineConfig,
    Precision,
    TrainConfig,
)
from llama_train.parallel.layout import Layout


def compute_bytes(engine: EngineConfig) -> int:
    """Bytes of an element that is computed with."""
    return {Precision.bf16: 2, Precision.fp32: 4, Precision.fp64: 8}[engine.precision]


def kept_by_layers(
    config: TrainConfig, layout: Layout, tokens: int, length: int, held: list[int]
) -> Iterator[tuple[str, int, str]]:
    """Yield (name, bytes of one micro-batch in all of the rank's layers, formula)."""
    engine = config.engine
    mode = engine.activation_checkpointing
    recomputed = sum(1 for number, _ in enumerate(held) if _is_recomputed(engine, number))
    whole = len(held) - recomputed
    inputs = tokens * config.model.hidden_size * compute_bytes(engine) // layout.tensor
    yield "layer inputs", recomputed * inputs, "2·n·D/t, of recomputed layers"
    if mode is ActivationCheckpointing.selective:
        for name, size, why in kept_by_products(config, layout, tokens, length):
            yield name, size * recomputed, why
    for name, size, why in kept_by_layer(config, layout, tokens, length):
        yield name, size * whole, why


def _is_recomputed(engine: EngineConfig, number: int) -> bool:
    match engine.activation_checkpointing:
        case ActivationCheckpointing.none:
            return False
        case ActivationCheckpointing.every_n:
            return number % engine.activation_checkpointing_every == 0
        case _:
            return True


def kept_by_layer(config: TrainConfig, layout: Layout, tokens: int, length: int) -> Iterator[tuple[str, int, str]]:
    """What a layer keeps when nothing of it is computed again."""
    model, engine, t = config.model, config.engine, layout.tensor
    b = compute_bytes(engine)
    wide = max(b, 4)
    D, F = model.hidden_size, model.ffn_size
    if engine.compile:
        # The compiler keeps the sums that a norm begins with and computes the norm again (AOTAutograd's min-cut).
        yield "norms", 2 * tokens * (b * D + wide) // t, "2·n·D/t each, their inputs, and a factor per token"
    else:
        yield "norms", 2 * tokens * (wide * D + b * D + wide) // t, "(4 + 2)·n·D/t each, and a factor per token"
    yield "inputs of the projections", 2 * tokens * b * D, "2·n·D for attention and for feed-forward, on every rank"
    yield "attention", _attention(config, layout, tokens, length), "queries, keys, values, results; a sum per head"
    products = 3 if engine.compile else 4
    yield "feed-forward", tokens * products * b * F // t, f"{products} of 2·n·F/t: gate, up, what they give"


def _attention(config: TrainConfig, layout: Layout, tokens: int, length: int) -> int:
    model, engine, t = config.model, config.engine, layout.tensor
    b = compute_bytes(engine)
    heads = model.heads // t
    keys = max(model.kv_heads // t, 1) * model.head_dim
    queries = heads * model.head_dim
    sums = 4 * heads * tokens
    method = layout.config.context_method
    if layout.context > 1 and method is ContextMethod.all_gather:
        # Two pieces of queries, whose keys are on average all of the sequence and half a piece; repeated for the heads.
        seen = layout.micro_batch_size * (length + length // (2 * layout.context))
        if _masks(config):
            seen = layout.micro_batch_size * length
        return b * 2 * queries * tokens + b * 2 * queries * seen + sums
    if layout.context > 1 and method is ContextMethod.ring:
        return tokens * b * (3 * queries + 2 * keys) + sums  # the results twice: as they are put together, and in order
    repeated = (_masks(config) and engine.attention is AttentionName.sdpa) or b > 2
    kept_keys = queries if repeated else keys
    return tokens * b * (2 * queries + 2 * kept_keys) + sums


def _masks(config: TrainConfig) -> bool:
    return config.data.document_masks


def has_dense_mask(config: TrainConfig, layout: Layout) -> bool:
    gathers = layout.context > 1 and layout.config.context_method is ContextMethod.all_gather
    return _masks(config) and (config.engine.attention is AttentionName.sdpa or gathers)


def kept_by_products(config: TrainConfig, layout: Layout, tokens: int, length: int) -> Iterator[tuple[str, int, str]]:
    """What `selective` keeps: the results of matrix products and of attention (parallel/activations.py)."""
    model, t = config.model, layout.tensor
    b = compute_bytes(config.engine)
    queries, keys = model.heads * model.head_dim // t, max(model.kv_heads // t, 1) * model.head_dim
    attention = tokens * b * (2 * queries + 2 * keys) + 4 * (model.heads // t) * tokens
    yield "attention", attention, "queries, keys, values, results; a sum per head"
    yield "feed-forward", tokens * b * 2 * model.ffn_size // t, "gate and up"
    yield "sublayer outputs", tokens * b * 2 * model.hidden_size, "2·2·n·D: results of o_proj and down_proj"
