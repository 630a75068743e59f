"""A user's configuration made small enough to prove on a laptop: same switches, same ratios, fewer of everything."""

import copy
import itertools
from dataclasses import dataclass, replace

from llama_train.config import (
    AttentionName,
    ContextMethod,
    Float8,
    LayoutConfig,
    Precision,
    TrainConfig,
)
from llama_train.prove.case import AXES, BATCH_SIZE

STEPS = 20
SEQUENCE_LENGTH = 32
HEAD_DIM = 8
VOCABULARY = 101  # divides over nothing
MOST_RANKS = 8


@dataclass(frozen=True)
class Room:
    """What the layouts of a proof cut, so that the shrunk model must have it."""

    layers: int | None = None  # exactly so many; None: at most 3
    tensor: int = 1
    kv_heads: int = 1  # at least so many
    replicated_kv_heads: bool = False  # and no more: fewer than tensor ranks


def shrink(config: TrainConfig, room: Room, precision: Precision = Precision.fp64) -> tuple[TrainConfig, list[str]]:
    """Return a small copy of `config`, and lines for people that say what was not kept.

    Kept: the ratio of heads to KV heads (up to 4) and of FFN to width, tied embeddings, RoPE and its scaling, packing,
    document masks, the engine's switches, optimizer and schedule. Every layout reads the same order, so segments and
    weights of sources are not kept.
    """
    small = copy.deepcopy(config)
    notes = []
    model = small.model
    group = min(config.model.heads // config.model.kv_heads, 4)
    if group < config.model.heads // config.model.kv_heads:
        notes.append(f"{config.model.heads // config.model.kv_heads} query heads share a KV head, proven with {group}")
    model.kv_heads = max(min(config.model.kv_heads, 4 if group == 1 else 2), room.kv_heads)
    if room.replicated_kv_heads:
        model.kv_heads = room.kv_heads
    if model.kv_heads * group % room.tensor:  # one KV head for three query heads
        group = 4
    model.heads = model.kv_heads * group
    model.hidden_size = model.heads * HEAD_DIM
    # A multiple of 8, for the tensor ranks.
    model.ffn_size = 8 * max(1, round(model.hidden_size * config.model.ffn_size / config.model.hidden_size / 8))
    model.layers = room.layers or min(config.model.layers, 3)
    model.vocab_size = VOCABULARY
    model.context = SEQUENCE_LENGTH
    model.initial_std = 0.1  # with 0.02 so small a model's logits, and so its gradients, would be almost zero
    small.data.sequence_length = SEQUENCE_LENGTH
    small.data.batch_size = BATCH_SIZE
    small.data.segments = []
    small.data.sources = {}
    small.steps = STEPS
    small.stop_at_step = None
    small.schedule.total_steps = STEPS
    small.schedule.warmup_steps = min(config.schedule.warmup_steps, 4)
    if small.schedule.decay_steps is not None:
        small.schedule.decay_steps = 8
    small.layout = LayoutConfig(data_shard=1)
    small.engine.precision = precision
    if small.engine.float8 is not Float8.none:
        notes.append(f"engine.float8={small.engine.float8.name}: not proven; the same layers run in {precision.name}")
        small.engine.float8 = Float8.none
    if small.engine.attention is not AttentionName.sdpa:
        notes.append(f"engine.attention={small.engine.attention.name}: not proven; sdpa runs in {precision.name}")
        small.engine.attention = AttentionName.sdpa
    if small.engine.loss_chunk:
        # So many tokens that a micro-batch of one row has several pieces, the last one shorter.
        small.engine.loss_chunk = SEQUENCE_LENGTH * 3 // 4
    small.check()
    return small, notes


def shrink_layout(layout: LayoutConfig, most_ranks: int = MOST_RANKS) -> tuple[list[LayoutConfig], list[str]]:
    """Return the layouts of at most `most_ranks` ranks that stand for `layout`, and what was not run together.

    Every axis above 1 (and data_shard=-1, which is open) becomes 2. Of four or five such axes, all sets of three are
    run with 8 ranks, of five all sets of four with 16.
    """
    used = [axis for axis in AXES if getattr(layout, axis) != 1]
    small = replace(layout, **dict.fromkeys(used, 2), **{axis: 1 for axis in AXES if axis not in used})
    small = _shrink_stages(small, layout)
    fit = most_ranks.bit_length() - 1
    if len(used) <= fit:
        return [small], []
    sets = list(itertools.combinations(used, fit))
    together = " × ".join(used)
    ranks = f"{2 ** len(used)} ranks; prove.ranks={most_ranks}"
    notes = [f"{together}: not run all together ({ranks}), but all {len(sets)} sets of {fit} of them"]
    return [_without(small, [axis for axis in used if axis not in kept]) for kept in sets], notes


def room_of(layouts: list[LayoutConfig], config: TrainConfig) -> Room:
    """Return what the shrunk model needs for the shrunk `layouts`."""
    layers, tensor, kv_heads = min(config.model.layers, 3), 1, 1
    for layout in layouts:
        layers = max(layers, layout.pipeline * layout.stages_per_rank)
        tensor = max(tensor, layout.tensor)
        ulysses = layout.context if layout.context_method is ContextMethod.ulysses else 1
        kv_heads = max(kv_heads, ulysses * (1 if config.layout.tensor > config.model.kv_heads else layout.tensor))
    chosen = next((layout.layers_per_stage for layout in layouts if layout.layers_per_stage is not None), None)
    replicated = tensor > 1 and config.layout.tensor > config.model.kv_heads
    return Room(layers if chosen is None else sum(chosen), tensor, kv_heads, replicated)


def _shrink_stages(small: LayoutConfig, layout: LayoutConfig) -> LayoutConfig:
    if small.pipeline == 1:
        return small
    per_rank = min(layout.stages_per_rank, 2)
    chosen = layout.layers_per_stage
    if chosen is None:
        return replace(small, stages_per_rank=per_rank)
    stages = small.pipeline * per_rank
    picked = [chosen[stage * len(chosen) // stages] for stage in range(stages)]
    uneven = [1 if count == min(picked) else 2 for count in picked]
    return replace(small, stages_per_rank=per_rank, layers_per_stage=uneven)


def _without(layout: LayoutConfig, axes: list[str]) -> LayoutConfig:
    changed = replace(layout, **dict.fromkeys(axes, 1))
    if changed.pipeline == 1:
        changed = replace(changed, stages_per_rank=1, layers_per_stage=None)
    return changed
