"""From a configuration and a number of processes to a layout, or to why there is none."""

import math

from llama_foundation.errors import ConfigError
from llama_train.config import (
    ActivationCheckpointing,
    AttentionName,
    ContextMethod,
    Float8,
    PipelineSchedule,
    ReduceGradients,
    Reshard,
    TrainConfig,
)
from llama_train.data.batch_size import check_divides
from llama_train.parallel.float8 import MULTIPLE
from llama_train.parallel.layout import AXES, Layout
from llama_train.parallel.shard import uses_fsdp
from llama_train.parallel.stages import V_SCHEDULES, splits_backward, stage_ranks
from llama_train.parallel.tensor import replicates_kv


def resolve_layout(config: TrainConfig, world_size: int, rank: int = 0) -> Layout:
    """Fill in what the configuration leaves open and refuse what does not fit.

    Raises:
        ConfigError: sizes that do not multiply to the number of processes, or that do not divide what they cut: the
            message has the field, its value and the values that are allowed.
    """
    asked = config.layout
    others = math.prod(getattr(asked, axis) for axis in AXES if axis != "data_shard")
    shard = asked.data_shard if asked.data_shard != -1 else max(world_size // others, 1)
    if others * shard != world_size:
        product = " × ".join(f"{axis}={getattr(asked, axis)}" for axis in AXES)
        fixed = others if asked.data_shard == -1 else others * shard
        raise ConfigError(
            f"layout: {product} does not give the {world_size} processes of this run; start a multiple of {fixed}, "
            f"or change an axis (data_shard=-1 takes what is left)"
        )
    layout = Layout(
        data_replicate=asked.data_replicate,
        data_shard=shard,
        rank=rank,
        micro_batch_size=asked.micro_batch_size,
        pipeline=asked.pipeline,
        context=asked.context,
        tensor=asked.tensor,
        config=asked,
    )
    _check_batches(config, layout)
    _check_tensor(config, layout)
    _check_context(config, layout)
    _check_pipeline(config, layout)
    _check_switches(config, layout)
    return layout


def check_nodes(layout: Layout, processes_per_node: int | None) -> None:
    """Refuse tensor groups that would span nodes: they wait for each other four times in every layer.

    Args:
        processes_per_node: None: not known, and not checked.

    Raises:
        ConfigError: with the sizes that stay inside of a node.
    """
    if processes_per_node is not None and processes_per_node % layout.tensor:
        raise ConfigError(
            f"layout.tensor={layout.tensor} does not divide the {processes_per_node} processes of a node, so that "
            f"tensor groups would span nodes; use {_one_of(_divisors(processes_per_node))}, or say with "
            "cluster.processes_per_node how many share the fastest network"
        )


def _check_batches(config: TrainConfig, layout: Layout) -> None:
    check_divides("data.batch_size", config.data.batch_size, layout.data_world, layout.micro_batch_size)
    for number, segment in enumerate(config.data.segments):
        if segment.batch_size is not None:
            setting = f"data.segments[{number}].batch_size"
            check_divides(setting, segment.batch_size, layout.data_world, layout.micro_batch_size)


def _check_tensor(config: TrainConfig, layout: Layout) -> None:
    model, tensor = config.model, layout.tensor
    if tensor == 1:
        return
    for name, size in (("heads", model.heads), ("ffn_size", model.ffn_size)):
        if size % tensor:
            raise ConfigError(
                f"layout.tensor={tensor} does not divide model.{name}={size}; use {_one_of(_divisors(model.heads))}"
            )
    if tensor <= model.kv_heads:
        if model.kv_heads % tensor:
            allowed = [n for n in _divisors(model.heads) if model.kv_heads % n == 0]
            raise ConfigError(
                f"layout.tensor={tensor} does not divide model.kv_heads={model.kv_heads}; use {_one_of(allowed)}"
            )
    elif tensor % model.kv_heads:
        raise ConfigError(
            f"layout.tensor={tensor} is no multiple of model.kv_heads={model.kv_heads}; use "
            f"{_one_of(_divisors(model.kv_heads))}, or a multiple of {model.kv_heads} with replicate_kv_heads=true"
        )
    elif not layout.config.replicate_kv_heads:
        raise ConfigError(
            f"layout.tensor={tensor} is more than model.kv_heads={model.kv_heads}: every rank would keep all of K and "
            f"V's weights; set layout.replicate_kv_heads=true for that, or use layout.tensor={model.kv_heads} or less"
        )


def _check_context(config: TrainConfig, layout: Layout) -> None:
    context, tensor, model = layout.context, layout.tensor, config.model
    ulysses = layout.config.context_method is ContextMethod.ulysses
    for setting, length in _sequence_lengths(config):
        pieces = context if ulysses or context == 1 else 2 * context
        if length % pieces or length // context % tensor:
            raise ConfigError(
                f"{setting}={length} does not divide over layout.context={context} (in {pieces} pieces) and "
                f"layout.tensor={tensor}; use a multiple of {math.lcm(pieces, context * tensor)}"
            )
    if context == 1:
        return
    if ulysses:
        kv_heads = max(model.kv_heads // tensor, 1)
        if (model.heads // tensor) % context or kv_heads % context:
            raise ConfigError(
                f"layout.context_method=ulysses gives each of layout.context={context} ranks some heads, but a tensor "
                f"rank has {model.heads // tensor} heads and {kv_heads} KV heads; use layout.context="
                f"{_one_of(_divisors(math.gcd(model.heads // tensor, kv_heads)))}, or context_method=all_gather"
            )
        return
    method = layout.config.context_method
    if method is ContextMethod.ring and config.data.document_masks:
        raise ConfigError(
            "layout.context_method=ring: the fused kernels whose parts can be put together take no document masks; "
            "use layout.context_method=all_gather, or data.document_masks=false"
        )
    if config.engine.attention in (AttentionName.varlen, AttentionName.flex):
        raise ConfigError(
            f"engine.attention={config.engine.attention.name} has no form for queries of a part of the sequence; use "
            f"engine.attention=sdpa with layout.context_method={method.name}, or layout.context_method=ulysses"
        )


def _check_pipeline(config: TrainConfig, layout: Layout) -> None:
    asked, schedule = layout.config, layout.config.pipeline_schedule
    if layout.pipeline == 1:
        if asked.stages_per_rank != 1 or asked.layers_per_stage is not None:
            raise ConfigError(
                "layout.pipeline=1: layout.stages_per_rank and layout.layers_per_stage are for pipelines; leave them "
                "out, or set layout.pipeline"
            )
        return
    single = schedule in (PipelineSchedule.gpipe, PipelineSchedule.one_f_one_b)
    if single != (asked.stages_per_rank == 1) or (schedule in V_SCHEDULES and asked.stages_per_rank != 2):
        needed = "1" if single else "2" if schedule in V_SCHEDULES else "2 or more"
        raise ConfigError(
            f"layout.pipeline_schedule={schedule.name} needs layout.stages_per_rank={needed}, not "
            f"{asked.stages_per_rank}"
        )
    if splits_backward(layout) and uses_fsdp(config.engine, layout):
        for setting, value, needed in (
            ("reshard_after_forward", config.engine.reshard_after_forward, Reshard.never),
            ("reduce_gradients", config.engine.reduce_gradients, ReduceGradients.once),
        ):
            if value.name not in ("auto", needed.name):
                raise ConfigError(
                    f"engine.{setting}={value.name}: layout.pipeline_schedule={schedule.name} computes gradients of "
                    f"weights apart from those of inputs, where FSDP2 would lose them; use engine.{setting}="
                    f"{needed.name} or auto, or another schedule"
                )
    stages, layers = len(stage_ranks(layout)), config.model.layers
    if stages > layers:
        raise ConfigError(
            f"layout.pipeline={layout.pipeline} × layout.stages_per_rank={asked.stages_per_rank} makes {stages} stages "
            f"of model.layers={layers}; use at most {layers} stages"
        )
    chosen = asked.layers_per_stage
    if chosen is not None and (len(chosen) != stages or sum(chosen) != layers):
        raise ConfigError(
            f"layout.layers_per_stage={list(chosen)} has {len(chosen)} numbers of together {sum(chosen)} layers; it "
            f"needs {stages}, one per stage, of together model.layers={layers}"
        )
    for setting, size in _batch_sizes(config):
        count = size // (layout.data_world * layout.micro_batch_size)
        least = 2 * layout.pipeline if schedule in V_SCHEDULES else layout.pipeline
        if count < least or (not single and count % layout.pipeline):
            raise ConfigError(
                f"{setting}={size} gives every pipeline {count} micro-batches; layout.pipeline_schedule="
                f"{schedule.name} over layout.pipeline={layout.pipeline} needs at least {least}"
                f"{'' if single else f' and a multiple of {layout.pipeline}'}: raise the batch, or lower "
                "layout.micro_batch_size or the data axes"
            )


def _check_switches(config: TrainConfig, layout: Layout) -> None:
    engine, model, tensor = config.engine, config.model, layout.tensor
    if engine.compile and splits_backward(layout):
        raise ConfigError(
            f"engine.compile=true: torch cannot split a compiled backward pass, which layout.pipeline_schedule="
            f"{layout.config.pipeline_schedule.name} needs; use engine.compile=false, or one_f_one_b or interleaved"
        )
    if engine.activation_checkpointing is ActivationCheckpointing.selective and splits_backward(layout):
        raise ConfigError(
            f"engine.activation_checkpointing=selective gives up what it kept after half of the backward pass, which "
            f"layout.pipeline_schedule={layout.config.pipeline_schedule.name} takes in two; use full, every_n or none, "
            "or another schedule"
        )
    if engine.async_tensor_parallel and not (engine.compile and tensor > 1):
        raise ConfigError(
            f"engine.async_tensor_parallel=true is the compiler's work on layout.tensor={tensor} with engine.compile="
            f"{str(engine.compile).lower()}; set engine.compile=true and layout.tensor to 2 or more, or switch it off"
        )
    if engine.float8 is Float8.none:
        return
    asked = f"engine.float8={engine.float8.name}"
    if replicates_kv(model, layout):
        raise ConfigError(
            f"{asked}: with layout.tensor={tensor} above model.kv_heads={model.kv_heads} a rank multiplies with a part "
            f"of K and V's weights, which float8 does not; use layout.tensor={model.kv_heads} or less"
        )
    sizes = {
        "model.ffn_size": model.ffn_size,
        "model.heads": model.heads * model.head_dim,
        "model.kv_heads": model.kv_heads * model.head_dim,
    }
    for name, size in sizes.items():
        if size // tensor % MULTIPLE:
            raise ConfigError(
                f"{asked}: {name} over layout.tensor={tensor} gives matrices of {size // tensor} columns, which is no "
                f"multiple of {MULTIPLE}; use a smaller layout.tensor, or engine.float8=none"
            )
    for setting, length in _sequence_lengths(config):
        tokens = layout.micro_batch_size * length // layout.context
        if tokens % MULTIPLE:
            raise ConfigError(
                f"{asked}: {setting}={length} with layout.micro_batch_size={layout.micro_batch_size} and "
                f"layout.context={layout.context} gives matrices of {tokens} rows, which is no multiple of {MULTIPLE}; "
                "change one of them, or use engine.float8=none"
            )


def _sequence_lengths(config: TrainConfig) -> list[tuple[str, int]]:
    lengths = [("data.sequence_length", config.data.sequence_length)]
    for number, segment in enumerate(config.data.segments):
        if segment.sequence_length is not None:
            lengths.append((f"data.segments[{number}].sequence_length", segment.sequence_length))
    return lengths


def _batch_sizes(config: TrainConfig) -> list[tuple[str, int]]:
    sizes = [("data.batch_size", config.data.batch_size)]
    for number, segment in enumerate(config.data.segments):
        if segment.batch_size is not None:
            sizes.append((f"data.segments[{number}].batch_size", segment.batch_size))
    return sizes


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _one_of(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + (" or " if numbers[1:] else "") + str(numbers[-1])
