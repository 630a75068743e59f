"""The cases of engine=deepspeed: ZeRO 1, 2 and 3 and FSDP2, and runs that change between them."""

from dataclasses import fields, replace

from llama_train.config import ActivationCheckpointing, EngineConfig, EngineName, OffloadTo, TrainConfig
from llama_train.prove.case import BATCH_SIZE, NATIVE, Case, Part, Settings, Variant, axes_name, part
from llama_train.prove.matrix import BEST_FIT, MASKED_ROWS, TWELVE, other_loss_chunk, turned
from llama_train.prove.settings import Matrix
from llama_train.prove.shrink import STEPS

STAGES = (1, 2, 3)

MOST_GRAD_NORM = 0.5
"""What cases clip by at most: the shrunk model's gradients are longer than that in every step."""

_RESUMED_AT = 7
_OFFLOADED = {"offload_optimizer": OffloadTo.cpu}
_ALL_OFFLOADED = _OFFLOADED | {"offload_parameters": OffloadTo.cpu}


def zero_cases(matrix: Matrix, config: TrainConfig) -> list[Case]:
    """Return the cases of a matrix.

    Args:
        config: the shrunk one: `own` runs its ZeRO stage and switches; the others all stages, without offloading.
    """
    match matrix:
        case Matrix.own:
            return _own(config)
        case Matrix.reduced:
            return [_case(2, NATIVE), *(_case(2, zero(stage)) for stage in STAGES), _alternating()]
        case Matrix.full:
            return _full(config)


def _own(config: TrainConfig) -> list[Case]:
    names = {each.name for each in fields(EngineConfig)} - {"precision", "config_file"}  # the same in all cases
    own = {name: getattr(config.engine, name) for name in names}
    assert own["zero_stage"] is not None
    return [
        Case("1 process, 8 micro-batches", (part(STEPS, {"micro_batch_size": 1}, own),)),
        _case(2, NATIVE),
        _case(2, own),
        _resumed((2, own), (1, NATIVE)),
        _resumed((2, NATIVE), (1, own)),
        _resumed((1, NATIVE), (2, own)),
    ]


def _full(config: TrainConfig) -> list[Case]:
    tied, masks = turned(config)
    chunk, chunk_name = other_loss_chunk(config)
    recompute = {
        name: {"activation_checkpointing": ActivationCheckpointing[name]} for name in ("full", "selective", "every_n")
    }
    return [
        _case(2, NATIVE),
        *(_case(world, zero(stage)) for world in (1, 2, 4) for stage in STAGES),
        # Three ranks: no tensor of the model divides by them.
        *(_case(3, engine, TWELVE) for engine in (NATIVE, *map(zero, STAGES))),
        *(_case(2, zero(stage), variant) for stage in STAGES for variant in (MASKED_ROWS, tied)),
        *(_case(2, zero(stage), variant) for stage, variant in ((1, BEST_FIT), (3, BEST_FIT), (2, masks), (3, masks))),
        *(_case(2, zero(stage, _OFFLOADED), note="optimizer offloaded") for stage in STAGES),
        _case(2, zero(3, _ALL_OFFLOADED), note="all offloaded"),
        *(_case(2, zero(stage, recompute["full"]), note="recompute full") for stage in STAGES),
        *(_case(2, zero(stage, recompute["selective"]), note="recompute selective") for stage in (1, 2)),
        _case(2, zero(3, recompute["every_n"]), note="recompute every_n"),
        *(_case(2, zero(stage, chunk), note=chunk_name) for stage in STAGES),
        _case(2, zero(2, {"compile": True}), note="compile"),
        *(_resumed((2, NATIVE), (world, zero(stage))) for stage, world in ((1, 3), (2, 1), (3, 4))),
        *(_resumed((world, zero(stage)), (2, NATIVE)) for stage, world in ((1, 3), (2, 1), (3, 3))),
        *(_resumed((2, zero(one)), (3, zero(other))) for one, other in ((1, 3), (3, 1), (3, 3))),
        _alternating(),
    ]


def zero(stage: int, more: Settings | None = None) -> Settings:
    """Return the engine's settings for a ZeRO stage, without offloading, and `more`."""
    others = {name: value for name, value in NATIVE.items() if name != "config_file"}
    return others | {"name": EngineName.deepspeed, "zero_stage": stage} | (more or {})


def _case(world: int, engine: Settings, variant: Variant | None = None, note: str = "") -> Case:
    variant = variant or Variant()
    words = [axes_name({"data_shard": world}), *([note] if note else [])]
    words += [variant.name] if variant.name != "plain" else []
    return Case(", ".join(words), (_part(STEPS, world, engine, variant.batch_size),), variant)


def _resumed(*legs: tuple[int, Settings]) -> Case:
    """Return a run that changes from one (world, engine) to the other."""
    batch_size = TWELVE.batch_size
    (world, engine), (other_world, other_engine) = legs
    name = f"{axes_name({'data_shard': world})} → {axes_name({'data_shard': other_world})}"
    first = _part(_RESUMED_AT, world, engine, batch_size)
    return Case(name, (first, _part(STEPS, other_world, other_engine, batch_size)), TWELVE)


def _alternating() -> Case:
    """Return a run that changes its engine at every checkpoint, five times, and mostly its ranks too."""
    legs = [(2, NATIVE), (2, zero(3)), (1, NATIVE), (2, zero(1)), (2, NATIVE), (1, zero(2))]
    ends = [3, 6, 9, 12, 15, STEPS]
    parts = [_part(end, world, engine, BATCH_SIZE) for end, (world, engine) in zip(ends, legs, strict=True)]
    return Case("alternating, 5 changes", tuple(parts))


def _part(last: int, world: int, engine: Settings, batch_size: int) -> Part:
    return part(last, {"data_shard": world}, engine, batch_size)


def always_clipped(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return `config` with a norm that every step's gradient is longer than, and a line that says so."""
    if 0 < config.optimizer.max_grad_norm <= MOST_GRAD_NORM:
        return config, []
    note = f"optimizer.max_grad_norm={config.optimizer.max_grad_norm:g}: proven with {MOST_GRAD_NORM:g}"
    optimizer = replace(config.optimizer, max_grad_norm=MOST_GRAD_NORM)
    return replace(config, optimizer=optimizer), [f"{note}, so that every step is clipped"]
