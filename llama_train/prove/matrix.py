"""The cases of `prove.matrix=full` and `reduced`: which layouts, and what makes each of them hard.

Every case has a vocabulary that does not divide, several micro-batches, and clipping if the configuration clips. What a
case changes beyond its axes is in its name.
"""

import itertools
from dataclasses import replace
from typing import Any

from llama_train.config import (
    ActivationCheckpointing,
    ContextMethod,
    Packing,
    PipelineSchedule,
    ReduceGradients,
    Reshard,
    TrainConfig,
)
from llama_train.prove.case import AXES, BATCH_SIZE, Case, Settings, Variant, axes_name, part
from llama_train.prove.shrink import SEQUENCE_LENGTH, STEPS, Room

ROOM = Room(layers=2, tensor=4, kv_heads=4)
"""Four tensor ranks, Ulysses on two context ranks of two tensor ranks; cases with more stages get more layers."""

_RESUMED_AT = 7
_AUTO = {"reshard_after_forward": Reshard.auto, "reduce_gradients": ReduceGradients.auto}
_ONCE = {"reduce_gradients": ReduceGradients.once}
_OFFLOAD = {"offload": True}

P, R, S, C, T = ({axis: 2} for axis in AXES)
ULYSSES = C | {"context_method": ContextMethod.ulysses}
RING = C | {"context_method": ContextMethod.ring}
GPIPE = P | {"pipeline_schedule": PipelineSchedule.gpipe}
INTERLEAVED = P | {"pipeline_schedule": PipelineSchedule.interleaved, "stages_per_rank": 2}
ZERO_BUBBLE = P | {"pipeline_schedule": PipelineSchedule.interleaved_zero_bubble, "stages_per_rank": 2}
ZERO_BUBBLE_V = P | {"pipeline_schedule": PipelineSchedule.zero_bubble_v, "stages_per_rank": 2}
DUAL_PIPE_V = P | {"pipeline_schedule": PipelineSchedule.dual_pipe_v, "stages_per_rank": 2}
SPLIT_BACKWARD = (ZERO_BUBBLE, ZERO_BUBBLE_V, DUAL_PIPE_V)
TWELVE = Variant("batch of 12", data={"batch_size": 12})
MASKED_ROWS = Variant("a rank all masked", masked_rows=BATCH_SIZE // 2)
MASKED_TOKENS = Variant("a rank's tokens masked", masked_tokens=SEQUENCE_LENGTH // 2)
BEST_FIT = Variant("best-fit", data={"packing": Packing.best_fit, "document_masks": True})
ONE_KV_HEAD = Variant("kv replicated", model={"kv_heads": 1})


def full_cases(config: TrainConfig) -> list[Case]:
    """Return all cases.

    Args:
        config: the shrunk one: the variants turn some of its switches.
    """
    tied, masks = turned(config)
    unmasked = masks if config.data.document_masks else Variant()
    return [
        *(_case(layout) for layout in _sums(1)),
        *(_case(layout) for layout in _sums(2)),
        # Schedules of a pipeline, each alone, with FSDP2, and some with what else meets inside a stage.
        *(_case(each) for each in (GPIPE, INTERLEAVED, ZERO_BUBBLE, ZERO_BUBBLE_V, DUAL_PIPE_V)),
        *(_case(each | S) for each in (GPIPE, INTERLEAVED, ZERO_BUBBLE, ZERO_BUBBLE_V, DUAL_PIPE_V)),
        *(_case(each | T) for each in (INTERLEAVED, ZERO_BUBBLE_V, DUAL_PIPE_V)),
        *(_case(each | C) for each in (INTERLEAVED, ZERO_BUBBLE_V)),
        _case({"pipeline": 4}),
        # Methods of context.
        *(_case(layout) for layout in (ULYSSES, ULYSSES | S, ULYSSES | T, ULYSSES | P, ULYSSES | P | T)),
        *(_case(layout, variant=masks) for layout in (C, ULYSSES, C | P, C | T)),
        *(_case(layout, variant=unmasked) for layout in (RING, RING | S, RING | T, RING | P, RING | P | T)),
        # When FSDP2 reduces, frees and offloads.
        *(_case(layout, _ONCE, "once") for layout in (S, R | S, P | S)),
        _case(S, {"reshard_after_forward": Reshard.never}, "reshard never"),
        *(_case(layout, _OFFLOAD, "offload") for layout in (S, S | T, P | S)),
        # Accumulation × pipeline: as many micro-batches as there are rows.
        *(_case(each | {"micro_batch_size": 1}, note="8 micro-batches") for each in (P, ZERO_BUBBLE_V)),
        # Ranks without a token that counts.
        *(_case(layout, variant=MASKED_ROWS) for layout in (S, R | S, P | S, S | T)),
        *(_case(layout, variant=MASKED_TOKENS) for layout in (ULYSSES, C)),
        *(_case(layout, variant=BEST_FIT) for layout in (S, C, ULYSSES, P | C)),
        # Uneven stages.
        *(_case(P | {"layers_per_stage": [1, 3]} | other, note="stages 1, 3") for other in ({}, S, T)),
        _case(DUAL_PIPE_V | {"layers_per_stage": [2, 1, 2, 1]}, note="stages 2, 1, 2, 1"),
        # The other of tied and untied embeddings.
        *(_case(layout, variant=tied) for layout in (S, T, S | C, P, P | S, P | T)),
        *(_case(each, variant=tied) for each in (INTERLEAVED, ZERO_BUBBLE, ZERO_BUBBLE_V, DUAL_PIPE_V | S)),
        # Fewer KV heads than tensor ranks.
        *(
            _case(layout | {"replicate_kv_heads": True}, variant=ONE_KV_HEAD)
            for layout in (T, S | T, P | T, {"tensor": 4})
        ),
        # Switches of the engine.
        *_switched(config, unmasked),
        *_resumed(),
        *(_case(layout) for layout in _sums(3)),
    ]


def reduced_cases(config: TrainConfig) -> list[Case]:
    """Return a selection of `full_cases` in which every axis, schedule family, method and policy occurs."""
    tied, _ = turned(config)
    return [
        _case(R | S, _ONCE, "once"),
        _case(S | T, _OFFLOAD, "offload"),
        _case(ULYSSES | T),
        _case(P | C),
        _case(P | S | T),
        _case(S | C | T),
        _case(ZERO_BUBBLE_V | S),
        _case(P | S, variant=MASKED_ROWS),
        _case(C, variant=BEST_FIT),
        _case(DUAL_PIPE_V, variant=tied),
        _case(P | T | {"layers_per_stage": [1, 3]}, variant=tied, note="stages 1, 3"),
        _case(T | {"replicate_kv_heads": True}, variant=ONE_KV_HEAD),
        *_resumed()[:2],
    ]


def _case(layout: Settings, engine: Settings | None = None, note: str = "", variant: Variant | None = None) -> Case:
    variant = variant or Variant()
    words = [axes_name(layout), *([note] if note else []), *([variant.name] if variant.name != "plain" else [])]
    if any(layout | each == layout for each in SPLIT_BACKWARD):
        engine = _AUTO | (engine or {})  # what the configuration may have chosen is refused under these schedules
    return Case(", ".join(words), (part(STEPS, layout, engine, variant.batch_size),), _with_layers(variant, layout))


def _with_layers(variant: Variant, *layouts: Settings) -> Variant:
    """Return `variant` with as many layers as the stages of `layouts` need."""
    needed = [ROOM.layers or 1]
    for layout in layouts:
        stages = layout.get("pipeline", 1) * layout.get("stages_per_rank", 1)
        needed.append(sum(layout.get("layers_per_stage", [1] * stages)))
    return variant if max(needed) == needed[0] else replace(variant, model=variant.model | {"layers": max(needed)})


def _sums(count: int) -> list[Settings]:
    """Return every set of `count` axes, each of 2 ranks."""
    return [dict.fromkeys(axes, 2) for axes in itertools.combinations(AXES, count)]


def turned(config: TrainConfig) -> tuple[Variant, Variant]:
    """Return the other of tied and untied embeddings, and of document masks and none."""
    tied = not config.model.tied_embeddings
    masks = not config.data.document_masks
    changes: dict[str, Any] = {"document_masks": masks, "packing": Packing.concatenate}
    return (
        Variant("tied" if tied else "untied", model={"tied_embeddings": tied}),
        Variant("masks" if masks else "no masks", data=changes),
    )


def _switched(config: TrainConfig, unmasked: Variant) -> list[Case]:
    full = {"activation_checkpointing": ActivationCheckpointing.full}
    selective = {"activation_checkpointing": ActivationCheckpointing.selective}
    chunk = other_loss_chunk(config)
    return [
        *(_case(layout, full, "recompute full") for layout in (S | T, C | T, P | S, ZERO_BUBBLE_V)),
        *(_case(layout, selective, "recompute selective") for layout in (S | T, C)),
        *(_case(layout, *chunk) for layout in (T, P | S, DUAL_PIPE_V)),
        *(_case(layout, {"compile": True}, "compile") for layout in (S, S | T, P, C, ULYSSES)),
        _case(RING, {"compile": True}, "compile", unmasked),
    ]


def other_loss_chunk(config: TrainConfig) -> tuple[Settings, str]:
    """Return the other of a loss in pieces and a whole one, and its name."""
    if config.engine.loss_chunk:
        return {"loss_chunk": 0}, "no loss_chunk"
    return {"loss_chunk": SEQUENCE_LENGTH * 3 // 4}, "loss_chunk"


def _resumed() -> list[Case]:
    """Return resumptions of one checkpoint, written by pipeline × shard × tensor, under other layouts."""
    written = part(_RESUMED_AT, P | S | T, batch_size=TWELVE.batch_size)
    layouts: list[Settings] = [{"data_shard": 3}, {"tensor": 4}, {"pipeline": 4}, {}]
    return [
        Case(
            f"{axes_name(written.layout)} → {axes_name(layout)}",
            (written, part(STEPS, layout, batch_size=TWELVE.batch_size)),
            _with_layers(TWELVE, *layouts),
        )
        for layout in layouts
    ]
