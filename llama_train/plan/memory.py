"""What one rank holds at the fullest moment of a step, in bytes: one term a line.

The terms follow what the native engine keeps (model/llama.py, model/loss.py, parallel/shard.py), operation by
operation: what autograd keeps for the backward pass. `plan.exact=true` (exact.py) counts the same by building the rank.
Korthikanti et al. 2022, section 4, counts the activations of a Transformer in the same way.

Letters, all of one rank: n tokens of a micro-batch (of its context slice), t tensor ranks, D hidden_size, Q elements of
all query heads, K of all key/value heads, F ffn_size, V vocabulary, H query heads, C tokens of a piece of the loss.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llama_train.config import (
    ActivationCheckpointing,
    EngineConfig,
    EngineName,
    ModelConfig,
    PipelineSchedule,
    Precision,
    Reshard,
    TrainConfig,
)
from llama_train.parallel.layout import Layout
from llama_train.parallel.stages import layers_per_stage, splits_backward, stage_layers, stage_ranks
from llama_train.plan.activations import compute_bytes, has_dense_mask, kept_by_layer, kept_by_layers, kept_by_products

MARGIN = 0.05
"""Assumed: the share of a device's memory that the caching allocator loses in pieces that fit nothing."""

RESERVED = int(1.5 * 2**30)
"""Assumed: CUDA context, cuBLAS workspaces and NCCL buffers, in bytes; they are not in the allocator's peak."""


@dataclass(frozen=True)
class Term:
    """A part of the memory of a rank."""

    name: str
    bytes: int
    why: str  # what it is, as a formula


@dataclass(frozen=True)
class Memory:
    """The fullest moment of one pipeline rank."""

    pipeline_rank: int
    moment: str  # when in the step it is
    terms: tuple[Term, ...]
    layers: int  # that the rank holds
    in_flight: float  # micro-batches whose activations are held at once, in units of all of the rank's layers

    @property
    def allocated(self) -> int:
        """Bytes that the allocator hands out: what `torch.cuda.max_memory_allocated` shows."""
        return sum(term.bytes for term in self.terms)

    def of(self, *names: str) -> int:
        """Return the bytes of the terms of these names."""
        return sum(term.bytes for term in self.terms if term.name in names)

    def needed(self, margin: float = MARGIN) -> int:
        """Bytes that a device must have: with what the allocator loses, and what is outside of it."""
        return int(self.allocated * (1 + margin)) + RESERVED


def most_memory(config: TrainConfig, layout: Layout, sequence_length: int, micro_batches: int) -> Memory:
    """Return the memory of the pipeline rank that needs most.

    Args:
        layout: resolved.
        sequence_length: tokens of a whole sequence.
        micro_batches: that a pipeline takes in one step.
    """
    ranks = [0] if layout.pipeline == 1 else range(layout.pipeline)
    each = (rank_memory(config, layout, sequence_length, micro_batches, rank) for rank in ranks)
    return max(each, key=lambda memory: memory.allocated)


def rank_memory(
    config: TrainConfig, layout: Layout, sequence_length: int, micro_batches: int, pipeline_rank: int
) -> Memory:
    """Return the memory of one pipeline rank at its fullest moment."""
    model = config.model
    held = _held_layers(model, layout, pipeline_rank)
    ranks = stage_ranks(layout)
    first, last = ranks[0] == pipeline_rank, ranks[-1] == pipeline_rank
    tokens = layout.micro_batch_size * sequence_length // layout.context
    in_flight = micro_batches_in_flight(layout, micro_batches, pipeline_rank)
    states = _states(config, layout, len(held), first, last)
    kept = [
        (name, size * in_flight, why)
        for name, size, why in kept_by_layers(config, layout, tokens, sequence_length, held)
    ]
    if layout.pipeline > 1:
        boundary = _boundary(config, layout, tokens, pipeline_rank)
        kept.append(("stage inputs and outputs", boundary * in_flight, "2·n·D/t each"))
    if has_dense_mask(config, layout):
        mask = layout.micro_batch_size * (sequence_length // layout.context) * sequence_length
        kept.append(("document mask", mask * in_flight, "n·S bytes"))
        states.append(
            Term("document mask as it is applied", compute_bytes(config.engine) * mask, "2·n·S, in one layer")
        )
    started = micro_batches > in_flight  # gradients of earlier micro-batches are there

    def moment(name: str, working: Iterable[Term], gradients: bool, share: float) -> tuple[str, list[Term]]:
        there = [term for term in states if gradients or term.name != "gradients"]
        alive = [Term(name, int(size * share), why) for name, size, why in kept]
        return name, [term for term in (*there, *alive, *working) if term.bytes]

    rest = 1 - 1 / in_flight  # of the activations: those of other micro-batches
    layer = (1 - rest) / len(held)
    begin, middle, end = (
        list(_in_backward(config, layout, tokens, sequence_length, first, last, place))
        for place in ("begin", "middle", "end")
    )
    moments = [
        moment("backward pass of the last layer", begin, started, 1),
        moment("backward pass of a layer", middle, started, 1 - layer),
        moment("gradients of a layer", end, started, 1 - layer),
        moment("backward pass of the first layer", middle, True, rest + layer),
        moment("gradients of the first layer", end, True, rest),
        moment("end of a backward pass", _in_reduction(config, layout, first, last), True, rest),
    ]
    if last:
        moments.append(moment("loss", _in_loss(config, layout, tokens, first), started, 1))
    name, terms = max(moments, key=lambda each: sum(term.bytes for term in each[1]))
    return Memory(pipeline_rank, name, tuple(terms), len(held), in_flight)


def micro_batches_in_flight(layout: Layout, micro_batches: int, pipeline_rank: int) -> float:
    """Return how many micro-batches' activations a pipeline rank holds at most, in units of all of its layers.

    1F1B: as many as there are ranks from this one to the last (Narayanan et al. 2019, section 3.3). Interleaved: 2 for
    each later rank and one round of the ranks for every stage but one, plus one (Narayanan et al. 2021, section 2.2);
    with gradients of weights put off, one for every stage of all ranks (torch's ScheduleInterleavedZeroBubble). V
    schedules: 2 stages for every rank (Qi et al. 2024, table 1). A test plays the schedules through.
    """
    ranks, stages = layout.pipeline, layout.config.stages_per_rank
    if ranks == 1:
        return 1
    match layout.config.pipeline_schedule:
        case PipelineSchedule.gpipe:
            return micro_batches
        case PipelineSchedule.one_f_one_b:
            return min(ranks - pipeline_rank, micro_batches)
        case PipelineSchedule.interleaved:
            chunks = 2 * (ranks - pipeline_rank - 1) + (stages - 1) * ranks + 1
        case PipelineSchedule.interleaved_zero_bubble:
            chunks = stages * ranks
        case _:
            chunks = 2 * ranks
    return min(chunks, micro_batches * stages) / stages


def rank_parameters(
    model: ModelConfig, layout: Layout, layers: int, first: bool, last: bool
) -> list[tuple[int, int, int]]:
    """Return (rows, columns, how many) of the parameters of a pipeline rank, not yet cut by FSDP2."""
    shapes = [(rows, columns, layers) for rows, columns in _layer_shapes(model, layout.tensor)]
    vocabulary = vocabulary_rows(model, layout), model.hidden_size, 1
    if first:
        shapes.append(vocabulary)
    if last:
        shapes.append((model.hidden_size, 1, 1))
        if not (model.tied_embeddings and first):
            shapes.append(vocabulary)
    return shapes


def shard_elements(shapes: list[tuple[int, int, int]], layout: Layout) -> int:
    """Return the elements that the first shard rank keeps of these parameters: FSDP2 cuts rows, and rounds up."""
    return sum(-(-rows // layout.shard_world) * columns * count for rows, columns, count in shapes)


def layer_elements(model: ModelConfig, tensor: int) -> int:
    """Return the parameters of a layer on one of `tensor` ranks."""
    return sum(rows * columns for rows, columns in _layer_shapes(model, tensor))


def _layer_shapes(model: ModelConfig, tensor: int) -> list[tuple[int, int]]:
    hidden, ffn, queries = model.hidden_size, model.ffn_size // tensor, model.heads * model.head_dim // tensor
    keys = model.kv_heads * model.head_dim
    keys = keys if tensor > model.kv_heads else keys // tensor
    matrices = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    return [(hidden, 1), *matrices, (hidden, 1), (ffn, hidden), (ffn, hidden), (hidden, ffn)]


def _held_layers(model: ModelConfig, layout: Layout, pipeline_rank: int) -> list[int]:
    ranks = stage_ranks(layout)
    if len(ranks) == 1:
        return list(range(model.layers))
    counts = stage_counts(model, layout)
    return [layer for stage, rank in enumerate(ranks) if rank == pipeline_rank for layer in stage_layers(counts, stage)]


def stage_counts(model: ModelConfig, layout: Layout) -> list[int]:
    """Return the layers of every stage (parallel/stages.py)."""
    chosen = layout.config.layers_per_stage
    shape = model.vocab_size, model.hidden_size, model.layers, model.heads, model.kv_heads, model.ffn_size
    return _stage_counts(shape, len(stage_ranks(layout)), None if chosen is None else tuple(chosen))


@functools.cache
def _stage_counts(shape: tuple[int, ...], stages: int, chosen: tuple[int, ...] | None) -> list[int]:
    names = ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "ffn_size")
    model = ModelConfig(**dict(zip(names, shape, strict=True)))
    return layers_per_stage(model, stages, None if chosen is None else list(chosen))


def _states(config: TrainConfig, layout: Layout, layers: int, first: bool, last: bool) -> list[Term]:
    """Weights, gradients and optimizer: Rajbhandari et al. 2020 (ZeRO), section 3.1, cut over the shard ranks."""
    engine = config.engine
    master = 8 if engine.precision is Precision.fp64 else 4
    shapes = rank_parameters(config.model, layout, layers, first, last)
    elements, whole = shard_elements(shapes, layout), sum(rows * columns * count for rows, columns, count in shapes)
    if engine.name is EngineName.deepspeed:
        return _zero_states(engine, layout, whole)
    cut = f"over {layout.shard_world} shard ranks"
    once = not reduces_every(engine, layout)
    on_host = engine.offload
    gathered = 0
    if _fsdp(engine, layout) and not reshards(engine, layout):
        gathered = compute_bytes(engine) * layers * layer_elements(config.model, layout.tensor)
    return [
        Term("weights", 0 if on_host else master * elements, f"{master} bytes, {cut}"),
        Term("gradients", 0 if on_host else master * elements, f"{master} bytes, {cut}"),
        Term("optimizer", 0 if on_host else 2 * master * elements, f"AdamW's two moments, {master} bytes each, {cut}"),
        Term("unreduced gradients", 4 * whole if once else 0, "4 bytes, uncut: engine.reduce_gradients=once"),
        Term("gathered weights of all layers", gathered, "kept from forward to backward"),
    ]


def _zero_states(engine: EngineConfig, layout: Layout, whole: int) -> list[Term]:
    """DeepSpeed's ZeRO: bf16 weights and fp32 gradients beside fp32 master weights and moments (section 5)."""
    ranks, stage = layout.data_replicate * layout.shard_world, engine.zero_stage or 0
    weights = whole * compute_bytes(engine) // (ranks if stage >= 3 else 1)
    gradients = whole * 4 // (ranks if stage >= 2 else 1)
    optimizer = whole * 12 // (ranks if stage >= 1 else 1)
    return [
        Term("weights", weights, "bf16" + (f", over {ranks} ranks" if stage >= 3 else "")),
        Term("gradients", gradients, "fp32" + (f", over {ranks} ranks" if stage >= 2 else "")),
        Term("optimizer", 0 if engine.offload_optimizer.name != "none" else optimizer, "fp32 weights and two moments"),
    ]


def _boundary(config: TrainConfig, layout: Layout, tokens: int, pipeline_rank: int) -> int:
    """What a rank's stages were given and have passed on, of one micro-batch."""
    ranks = stage_ranks(layout)
    ends = sum((stage > 0) + (stage < len(ranks) - 1) for stage, rank in enumerate(ranks) if rank == pipeline_rank)
    return ends * tokens * config.model.hidden_size * compute_bytes(config.engine) // layout.tensor


def _in_backward(
    config: TrainConfig, layout: Layout, tokens: int, length: int, first: bool, last: bool, place: str
) -> Iterator[Term]:
    """What the backward pass of a layer works with.

    Args:
        place: "begin" of the last layer, when nothing is reduced yet, "middle" of another one, when its feed-forward is
            computed and the gradients of the layer before are on their way, or its "end", when its own are.
    """
    model, engine, t = config.model, config.engine, layout.tensor
    b, parameters = compute_bytes(engine), layer_elements(config.model, layout.tensor)
    yield from _gathered_root(config, layout, first, last)
    if last:
        yield Term("gradient of the head", b * vocabulary_rows(model, layout) * model.hidden_size, "2·V·D/t")
    if _fsdp(engine, layout):
        whole = 2 if reshards(engine, layout) else 0
        yield Term("gathered weights", whole * b * parameters, "2 bytes: of a layer, and of the next one's message")
        if place != "begin":
            yield Term("reduce-scatter of gradients", 4 * parameters, "4 bytes, of a layer")
        if place == "end":
            yield Term("gradients of a layer", b * parameters, "2 bytes")
    if place == "end":
        yield Term("gradients of activations", 2 * tokens * b * model.hidden_size, "2·2·n·D")
        return
    if engine.activation_checkpointing is not ActivationCheckpointing.none:
        again = sum(size for _, size, _ in kept_by_layer(config, layout, tokens, length))
        if engine.activation_checkpointing is ActivationCheckpointing.selective:
            again -= sum(size for _, size, _ in kept_by_products(config, layout, tokens, length))
        yield Term("a layer computed again", max(again, 0), "what it keeps without recomputation")
    yield Term(
        "gradients of activations", tokens * b * (3 * model.ffn_size // t + model.hidden_size), "2·n·(3·F/t + D)"
    )


def _in_loss(config: TrainConfig, layout: Layout, tokens: int, first: bool) -> Iterator[Term]:
    """What model/loss.py and parallel/vocabulary.py work with."""
    model, engine, t = config.model, config.engine, layout.tensor
    b, rows = compute_bytes(engine), vocabulary_rows(config.model, layout)
    wide = max(b, 4)
    yield from _gathered_root(config, layout, first, True)
    if _fsdp(engine, layout):
        yield Term("gathered weights", b * layer_elements(model, t), "the message of the last layer")
    hidden = tokens * model.hidden_size
    yield Term("last norm", hidden * (wide + b) // t + b * hidden, "(4 + 2)·n·D/t and 2·n·D")
    if not engine.loss_chunk:
        yield Term("logits", tokens * rows * (b + 3 * wide), "n·V/t: bf16, three times in fp32")
        return
    piece = min(tokens, engine.loss_chunk) * rows
    two = 2 if tokens > engine.loss_chunk else 1
    yield Term("logits", max(two * (b + wide) * piece, (b + wide) * piece + b * rows * model.hidden_size), "two pieces")
    yield Term("gradient of the head", wide * rows * model.hidden_size, "4·V·D/t")
    yield Term("gradient of hidden states", b * hidden, "2·n·D")


def _in_reduction(config: TrainConfig, layout: Layout, first: bool, last: bool) -> Iterator[Term]:
    """What reducing the gradients of embedding and head works with."""
    if _fsdp(config.engine, layout):
        root = (first + last) * vocabulary_rows(config.model, layout) * config.model.hidden_size
        b = compute_bytes(config.engine)
        yield Term("gathered embedding and head", b * root, "2·V·D/t each")
        yield Term("gradients of embedding and head", (b + 4) * root, "bf16, and fp32 for their reduce-scatter")


def _gathered_root(config: TrainConfig, layout: Layout, first: bool, last: bool) -> Iterator[Term]:
    if _fsdp(config.engine, layout):
        root = (first + last) * vocabulary_rows(config.model, layout) * config.model.hidden_size
        yield Term("gathered embedding and head", compute_bytes(config.engine) * root, "2·V·D/t each")


def _fsdp(engine: EngineConfig, layout: Layout) -> bool:
    return (
        layout.shard_world * layout.data_replicate > 1 or engine.precision is Precision.bf16 or engine.offload
    ) and engine.name is EngineName.native


def reshards(engine: EngineConfig, layout: Layout) -> bool:
    """Whether gathered weights are freed between forward and backward: parallel/apply.py's rule."""
    if engine.reshard_after_forward is Reshard.auto:
        return not splits_backward(layout)
    return engine.reshard_after_forward is Reshard.always


def reduces_every(engine: EngineConfig, layout: Layout) -> bool:
    """Whether gradients are reduced after every micro-batch: parallel/apply.py's rule."""
    choice = engine.reduce_gradients.name
    return choice == "every_micro_batch" or (choice == "auto" and not splits_backward(layout))


def vocabulary_rows(model: ModelConfig, layout: Layout) -> int:
    """Rows of the embedding's and the head's matrix on one tensor rank."""
    return -(-model.vocab_size // layout.tensor)
