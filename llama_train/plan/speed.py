"""How long a step takes: matrix products, attention, memory-bound operations, messages, the pipeline's bubble.

Every term is operations or bytes over a speed. Speeds are the datasheet's, times an efficiency of `Fit` or of the
accelerator (configs/accelerator/), which benchmarks/planner_fit.py fits to half of the published runs. docs/planning.md
has the error on the other half.

Letters as in memory.py: n tokens of a micro-batch on one rank, t tensor ranks, D hidden_size, F ffn_size, V vocabulary.
"""

import math
from dataclasses import dataclass

from llama_train.config import (
    ActivationCheckpointing,
    AttentionName,
    EngineName,
    Float8,
    PipelineSchedule,
    TrainConfig,
)
from llama_train.parallel.layout import Layout
from llama_train.parallel.stages import V_SCHEDULES, stage_ranks
from llama_train.plan.activations import compute_bytes
from llama_train.plan.hardware import Hardware
from llama_train.plan.memory import (
    layer_elements,
    rank_parameters,
    reduces_every,
    reshards,
    shard_elements,
    stage_counts,
    vocabulary_rows,
)


@dataclass(frozen=True)
class Fit:
    """Efficiencies that all accelerators share; fitted by benchmarks/planner_fit.py, but where `assumed` is said."""

    half_size: float = 338.0  # a side of a product at which it reaches half of its speed: x / (x + half_size)
    half_sequence: float = 512.0  # assumed: the same for attention and the length of a sequence
    bandwidth: float = 0.8  # assumed: of the datasheet's memory bandwidth, for memory-bound operations
    link: float = 0.344  # of the datasheet's speed inside a node
    network: float = 0.811  # of the datasheet's speed between nodes
    hop_seconds: float = 1e-06  # of every step of a ring
    overlap: float = 0.719  # part of the computation that FSDP2's messages hide behind
    asynchronous: float = 0.238  # part of tensor parallelism's messages that engine.async_tensor_parallel leaves
    float8: float = 0.778  # of the doubled speed of float8 products, with their casts
    node_doubling: float = 0.0  # part of a step lost by waiting for the slowest, for every doubling of the nodes


FIT = Fit()


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step of the slowest pipeline rank, by what they are spent on."""

    products: float
    attention: float
    memory_bound: float  # norms, rotations, SwiGLU, loss
    recomputation: float  # activations made again
    tensor_messages: float
    context_messages: float
    shard_messages: float  # of FSDP2 or ZeRO: what computation does not hide
    pipeline_messages: float
    bubble: float
    optimizer: float
    waiting: float  # for the slowest of many nodes
    tokens: int
    devices: int

    @property
    def seconds(self) -> float:
        return sum(value for name, value in self.__dict__.items() if name not in ("tokens", "devices"))

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens / self.seconds / self.devices


def step_time(
    config: TrainConfig, layout: Layout, hardware: Hardware, sequence_length: int, batch_size: int, fit: Fit = FIT
) -> StepTime:
    """Predict a step of `batch_size` sequences of `sequence_length` tokens.

    Args:
        layout: resolved.
    """
    tokens = layout.micro_batch_size * sequence_length // layout.context
    micro_batches = batch_size // (layout.data_world * layout.micro_batch_size)
    ranks = stage_ranks(layout)
    counts = stage_counts(config.model, layout)
    layers = [
        sum(count for count, rank in zip(counts, ranks, strict=True) if rank == place)
        for place in range(layout.pipeline)
    ]
    layer = _layer(config, layout, hardware, tokens, sequence_length, micro_batches, fit)
    head = _head(config, layout, hardware, tokens, fit)
    ends = [(ranks[0] == place, ranks[-1] == place) for place in range(layout.pipeline)]
    slowest = max(range(layout.pipeline), key=lambda place: layers[place] * layer.total + ends[place][1] * head.total)
    own, last = layers[slowest], ends[slowest][1]
    passes = {
        name: micro_batches * (own * getattr(layer, name) + last * getattr(head, name)) for name in layer.__dict__
    }
    busy = sum(passes.values())
    pipeline = _pipeline_messages(config, layout, hardware, tokens, fit) * micro_batches
    bubble = bubble_share(layout, micro_batches)
    waiting_for_pipeline = (busy + pipeline) * bubble / (1 - bubble)
    edges = _edges(config, layout, hardware, ends[0], ends[-1], fit)
    shapes = rank_parameters(config.model, layout, max(layers), *ends[slowest])
    # Weights, gradient and two moments read, all but the gradient written; the norm reads, clipping reads and writes.
    optimizer = shard_elements(shapes, layout) * 40 / (hardware.bandwidth * fit.bandwidth)
    partial = busy + pipeline + waiting_for_pipeline + edges + optimizer
    nodes = max(layout.world_size / hardware.devices_per_node, 1)
    return StepTime(
        products=passes["products"],
        attention=passes["attention"],
        memory_bound=passes["memory_bound"],
        recomputation=passes["recomputation"],
        tensor_messages=passes["tensor_messages"],
        context_messages=passes["context_messages"],
        shard_messages=passes["shard_messages"] + edges,
        pipeline_messages=pipeline,
        bubble=waiting_for_pipeline,
        optimizer=optimizer,
        waiting=partial * fit.node_doubling * math.log2(nodes),
        tokens=batch_size * sequence_length,
        devices=layout.world_size,
    )


def bubble_share(layout: Layout, micro_batches: int) -> float:
    """Return the share of the passes' time in which a pipeline rank waits, all stages being equal.

    (p - 1) / (v·m + p - 1) for p ranks, v stages each, m micro-batches (Narayanan et al. 2021, section 2.2); with the
    gradients of weights put off a third of it remains (Qi et al. 2023, table 1); in a V schedule with m of at least 2p
    nearly nothing (Qi et al. 2024). `parallel/bubble.py` plays the schedules through.
    """
    ranks, stages = layout.pipeline, layout.config.stages_per_rank
    if ranks == 1:
        return 0.0
    lost = ranks - 1.0
    if layout.config.pipeline_schedule is PipelineSchedule.interleaved_zero_bubble:
        lost /= 3
    elif layout.config.pipeline_schedule in V_SCHEDULES:
        lost /= 6
    return lost / (stages * micro_batches + lost)


@dataclass(frozen=True)
class _Seconds:
    """Of a micro-batch's forward and backward pass through a layer, or through the head."""

    products: float = 0.0
    attention: float = 0.0
    memory_bound: float = 0.0
    recomputation: float = 0.0
    tensor_messages: float = 0.0
    context_messages: float = 0.0
    shard_messages: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.__dict__.values())


def product_seconds(rows: float, inner: float, columns: float, hardware: Hardware, fit: Fit) -> float:
    """Return the time of a bf16 product [rows, inner] × [inner, columns]; short sides fill the device badly."""
    filled = 1.0
    for side in (rows, inner, columns):
        filled *= side / (side + fit.half_size)
    return 2 * rows * inner * columns / (hardware.flops * hardware.matmul_efficiency * filled)


def _layer(
    config: TrainConfig, layout: Layout, hardware: Hardware, tokens: int, length: int, micro_batches: int, fit: Fit
) -> _Seconds:
    model, engine, t, b = config.model, config.engine, layout.tensor, compute_bytes(config.engine)
    D, Q, F = model.hidden_size, model.heads * model.head_dim / t, model.ffn_size / t
    K = max(model.kv_heads / t, 1) * model.head_dim
    slower = 1.0 if b == 2 else b * 2.0  # assumed: float32 in TF32 at half of bf16's speed, twice the bytes
    sides = [(D, Q), (D, K), (D, K), (Q, D), (D, F), (D, F), (F, D)]
    forward = slower * sum(product_seconds(tokens, inner, columns, hardware, fit) for inner, columns in sides)
    if engine.float8 is not Float8.none:
        forward /= 2 * fit.float8
    # Scores and values for every key that is multiplied: half of them where a kernel skips what causality hides.
    dense = config.data.document_masks and engine.attention is AttentionName.sdpa
    keys = length if dense else length / 2
    speed = hardware.flops * hardware.attention_efficiency * length / (length + fit.half_sequence)
    attention = slower * 4 * Q * tokens * keys / speed
    # Compiled: norms with their sums, rotations, SwiGLU. Eager, every operation reads and writes, norms in fp32.
    norms, rotations, swiglu = (8, 2, 3) if engine.compile else (40, 19, 5)
    traffic = norms * D / t + rotations * (Q + K) + swiglu * F
    memory_bound = traffic * b * tokens / (hardware.bandwidth * fit.bandwidth)
    again = _recomputed_share(config, forward, attention, memory_bound)
    messages = _tensor_messages(config, layout, hardware, tokens, fit)
    context = _context_messages(config, layout, hardware, length, fit)
    first, second = _shard_messages(config, layout, hardware, micro_batches, fit)
    there = forward + attention + memory_bound + messages[0] + context
    back = 2 * forward + 2.5 * attention + 2 * memory_bound + again + messages[1] + 2 * context
    exposed = max(0.0, first - fit.overlap * there) + max(0.0, second - fit.overlap * back)
    return _Seconds(
        products=3 * forward,
        attention=3.5 * attention,
        memory_bound=3 * memory_bound,
        recomputation=again,
        tensor_messages=sum(messages),
        context_messages=3 * context,
        shard_messages=exposed,
    )


def _recomputed_share(config: TrainConfig, forward: float, attention: float, memory_bound: float) -> float:
    engine = config.engine
    match engine.activation_checkpointing:
        case ActivationCheckpointing.none:
            return 0.0
        case ActivationCheckpointing.full:
            return forward + attention + memory_bound
        case ActivationCheckpointing.selective:
            return memory_bound
        case ActivationCheckpointing.every_n:
            return (forward + attention + memory_bound) / engine.activation_checkpointing_every


def _head(config: TrainConfig, layout: Layout, hardware: Hardware, tokens: int, fit: Fit) -> _Seconds:
    model, b = config.model, compute_bytes(config.engine)
    rows = vocabulary_rows(model, layout)
    slower = 1.0 if b == 2 else b * 2.0
    products = 3 * slower * product_seconds(tokens, model.hidden_size, rows, hardware, fit)
    # Logits written, read and written by softmax, exponentiated, turned into gradients and read twice.
    traffic = tokens * rows * (4 * b + 6 * max(b, 4))
    if config.engine.loss_chunk:
        pieces = -(-tokens // config.engine.loss_chunk)
        traffic += pieces * rows * model.hidden_size * (2 * b + 8)  # the weight's gradient, added up in fp32
    return _Seconds(products=products, memory_bound=traffic / (hardware.bandwidth * fit.bandwidth))


def ring_seconds(size: float, ranks: int, stride: int, hardware: Hardware, fit: Fit) -> float:
    """Return the time of an all-gather to, or a reduce-scatter from, `size` bytes on each of `ranks` ranks.

    A ring sends (ranks - 1) / ranks of the bytes past every rank. Between nodes it is as fast as the network adapters
    of those devices of a node that are in the group.

    Args:
        stride: distance of the group's members in rank numbers.
    """
    if ranks == 1:
        return 0.0
    inside = max(1, min(ranks, hardware.devices_per_node // stride))
    speed = hardware.link * fit.link
    if inside < ranks:
        between = inside * hardware.network * fit.network
        speed = min(speed, between) if inside > 1 else between
    return size * (ranks - 1) / ranks / speed + (ranks - 1) * fit.hop_seconds


def _shard_messages(
    config: TrainConfig, layout: Layout, hardware: Hardware, micro_batches: int, fit: Fit
) -> tuple[float, float]:
    """Seconds of a layer's messages in the forward and in the backward pass, for each micro-batch."""
    engine, elements = config.engine, layer_elements(config.model, layout.tensor)
    stride = layout.tensor
    ranks = layout.shard_world
    if engine.name is EngineName.deepspeed:
        ranks = ranks * layout.data_replicate
        gather = ring_seconds(compute_bytes(engine) * elements, ranks, stride, hardware, fit)
        scatter = ring_seconds(4 * elements, ranks, stride, hardware, fit)
        stage = engine.zero_stage or 0
        return (gather, gather + scatter) if stage >= 3 else (0.0, scatter * (1 if stage == 2 else 2))
    gather = ring_seconds(compute_bytes(engine) * elements, ranks, stride, hardware, fit)
    reduce = ring_seconds(4 * elements, ranks, stride, hardware, fit)
    if layout.data_replicate > 1:  # an all-reduce of the slice: a reduce-scatter and an all-gather
        reduce += 2 * ring_seconds(4 * elements / ranks, layout.data_replicate, stride * ranks, hardware, fit)
    keeps = not reshards(engine, layout)
    if not reduces_every(engine, layout):
        reduce /= micro_batches
        if keeps and layout.pipeline > 1:  # torch's stages then free gathered weights after the last micro-batch only
            gather /= micro_batches
    return gather, reduce + (0.0 if keeps else gather)


def _edges(
    config: TrainConfig, layout: Layout, hardware: Hardware, first: tuple[bool, bool], last: tuple[bool, bool], fit: Fit
) -> float:
    """Messages of embedding and head, which nothing hides: gathered first, reduced last; once a step."""
    matrices = max(sum(first), sum(last))
    size = matrices * vocabulary_rows(config.model, layout) * config.model.hidden_size
    ranks, stride = layout.shard_world, layout.tensor
    seconds = ring_seconds(compute_bytes(config.engine) * size, ranks, stride, hardware, fit)
    seconds += ring_seconds(4 * size, ranks, stride, hardware, fit)
    return seconds + 2 * ring_seconds(4 * size / ranks, layout.data_replicate, stride * ranks, hardware, fit)


def _tensor_messages(
    config: TrainConfig, layout: Layout, hardware: Hardware, tokens: int, fit: Fit
) -> tuple[float, float]:
    """Two all-gathers and two reduce-scatters a layer and pass (Korthikanti et al. 2022, section 4.2.2)."""
    if layout.tensor == 1:
        return 0.0, 0.0
    size = tokens * config.model.hidden_size * compute_bytes(config.engine)
    one = ring_seconds(size, layout.tensor, 1, hardware, fit)
    again = {ActivationCheckpointing.none: 0, ActivationCheckpointing.selective: 3}.get(
        config.engine.activation_checkpointing, 4
    )
    left = fit.asynchronous if config.engine.async_tensor_parallel else 1.0
    return 4 * one * left, (4 + again) * one * left


def _context_messages(config: TrainConfig, layout: Layout, hardware: Hardware, length: int, fit: Fit) -> float:
    """Keys and values of the whole sequence gathered; backward twice as much, with the recomputation."""
    model, t = config.model, layout.tensor
    keys = max(model.kv_heads // t, 1) * model.head_dim
    size = 2 * layout.micro_batch_size * length * keys * compute_bytes(config.engine)
    return ring_seconds(size, layout.context, t, hardware, fit)


def _pipeline_messages(config: TrainConfig, layout: Layout, hardware: Hardware, tokens: int, fit: Fit) -> float:
    """Hidden states to the next stage and their gradients back, of a micro-batch."""
    if layout.pipeline == 1:
        return 0.0
    size = tokens * config.model.hidden_size * compute_bytes(config.engine) / layout.tensor
    apart = layout.world_size // layout.pipeline >= hardware.devices_per_node
    speed = hardware.network * fit.network if apart else hardware.link * fit.link
    return 2 * layout.config.stages_per_rank * (size / speed + fit.hop_seconds)
