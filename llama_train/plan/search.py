"""All layouts that could be, ranked by speed; and why one does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llama_foundation.errors import ConfigError
from llama_train.config import (
    ActivationCheckpointing,
    EngineConfig,
    EngineName,
    LayoutConfig,
    PipelineSchedule,
    ReduceGradients,
    Reshard,
    TrainConfig,
)
from llama_train.engine.deepspeed.checks import check_deepspeed
from llama_train.parallel.layout import Layout
from llama_train.parallel.resolve import resolve_layout
from llama_train.plan.hardware import Hardware
from llama_train.plan.memory import Memory, most_memory, rank_memory
from llama_train.plan.recipe import Stage, main_stage
from llama_train.plan.speed import StepTime, step_time

MODES = (ActivationCheckpointing.none, ActivationCheckpointing.selective, ActivationCheckpointing.full)


@dataclass(frozen=True)
class Candidate:
    """A layout with its engine switches: does it fit, and how fast is it."""

    config: TrainConfig
    layout: Layout
    memory: Memory
    time: StepTime

    def fits(self, hardware: Hardware, margin: float) -> bool:
        return self.memory.needed(margin) <= hardware.memory


def evaluate(config: TrainConfig, world_size: int, hardware: Hardware, stage: Stage, quick: bool = False) -> Candidate:
    """Predict memory and time of `config` on `world_size` devices.

    Args:
        stage: of the recipe, whose step is timed; memory is that of the longest sequence.
        quick: look at the first and the last pipeline rank only.

    Raises:
        ConfigError: the layout does not divide what it cuts, or spans nodes with its tensor groups.
    """
    if config.engine.name is EngineName.deepspeed:
        check_deepspeed(config)
    layout = resolve_layout(config, world_size)
    if layout.tensor > hardware.devices_per_node:
        raise ConfigError(
            f"layout.tensor={layout.tensor} is more than the {hardware.devices_per_node} devices of a node; use a "
            "divisor of them"
        )
    length = config.data.longest_sequence()
    micro_batches = stage.batch_size // (layout.data_world * layout.micro_batch_size)
    if quick and layout.pipeline > 2:
        ends = (rank_memory(config, layout, length, micro_batches, rank) for rank in (0, layout.pipeline - 1))
        memory = max(ends, key=lambda each: each.allocated)
    else:
        memory = most_memory(config, layout, length, micro_batches)
    time = step_time(config, layout, hardware, stage.sequence_length, stage.batch_size)
    return Candidate(config, layout, memory, time)


def candidates(config: TrainConfig, world_size: int, hardware: Hardware) -> Iterator[Candidate]:
    """Yield every layout of `world_size` devices that divides what it cuts, with every way of recomputation."""
    stage = main_stage(config)
    for layout in _layouts(config, world_size, hardware):
        for engine in _engines(config.engine, layout):
            try:
                yield evaluate(replace(config, layout=layout, engine=engine), world_size, hardware, stage, quick=True)
            except ConfigError:
                continue


def ranked(found: list[Candidate], hardware: Hardware, margin: float) -> list[Candidate]:
    """Return what fits, the fastest first; of layouts that differ in recomputation only, the fastest."""
    best: dict[tuple[object, ...], Candidate] = {}
    for candidate in found:
        if candidate.fits(hardware, margin):
            key = (
                *candidate.layout.sizes,
                candidate.layout.config.pipeline_schedule,
                candidate.layout.config.stages_per_rank,
            )
            if key not in best or candidate.time.seconds < best[key].time.seconds:
                best[key] = candidate
    return sorted(best.values(), key=lambda each: each.time.seconds)


def why_not(candidate: Candidate, world_size: int, hardware: Hardware, margin: float) -> str:
    """Say what does not fit, and which one change makes it fit."""
    memory = candidate.memory
    states = memory.of("weights", "gradients", "optimizer")
    kinds = {
        "weights, gradients and optimizer state": states,
        "activations and buffers": memory.allocated - states,
    }
    largest = max(kinds, key=lambda name: kinds[name])
    need, have = memory.needed(margin) / 2**30, hardware.memory / 2**30
    message = (
        f"{need:.0f} GiB of {have:.0f} at pipeline rank {memory.pipeline_rank} ({largest}: "
        f"{kinds[largest] / 2**30:.0f} GiB, {memory.moment})"
    )
    fixes = list(_fixes(candidate, world_size, hardware, margin))
    return f"{message}; {' or '.join(fixes[:3])} fits" if fixes else f"{message}; no single change makes it fit"


def _fixes(candidate: Candidate, world_size: int, hardware: Hardware, margin: float) -> Iterator[str]:
    config, layout = candidate.config, candidate.layout
    changes: list[tuple[str, TrainConfig]] = []
    for mode in MODES[1:]:
        if mode is not config.engine.activation_checkpointing:
            engine = replace(config.engine, activation_checkpointing=mode)
            changes.append((f"engine.activation_checkpointing={mode.name}", replace(config, engine=engine)))
    for size in (layout.micro_batch_size // 2, 1):
        if 0 < size < layout.micro_batch_size:
            changed = replace(config.layout, micro_batch_size=size)
            changes.append((f"layout.micro_batch_size={size}", replace(config, layout=changed)))
    if layout.data_replicate > 1:
        changed = replace(config.layout, data_replicate=1, data_shard=-1)
        changes.append(("layout.data_replicate=1 with data_shard=-1", replace(config, layout=changed)))
    tensor = layout.tensor * 2
    while tensor <= hardware.devices_per_node:
        changed = replace(config.layout, tensor=tensor, data_shard=-1)
        changes.append((f"layout.tensor={tensor} with data_shard=-1", replace(config, layout=changed)))
        tensor *= 2
    stage = main_stage(config)
    for words, changed_config in changes:
        try:
            if evaluate(changed_config, world_size, hardware, stage).fits(hardware, margin):
                yield words
        except ConfigError:
            continue


def _layouts(config: TrainConfig, world_size: int, hardware: Hardware) -> Iterator[LayoutConfig]:
    longest = config.data.longest_sequence()
    contexts = [1] + [size for size in (2, 4, 8, 16) if longest // size >= 8192]
    for tensor in _powers(min(hardware.devices_per_node, config.model.kv_heads)):
        for pipeline in _powers(min(16, config.model.layers)):
            for context in contexts:
                rest, remainder = divmod(world_size, tensor * pipeline * context)
                if remainder or rest < 1:
                    continue
                for shard in _shards(rest, hardware.devices_per_node // tensor):
                    for micro_batch in (1, 2, 4, 8):
                        base = LayoutConfig(
                            pipeline=pipeline,
                            data_replicate=rest // shard,
                            data_shard=shard,
                            context=context,
                            tensor=tensor,
                            micro_batch_size=micro_batch,
                        )
                        yield from _schedules(base, config.model.layers)


def _schedules(base: LayoutConfig, layers: int) -> Iterator[LayoutConfig]:
    yield base
    if base.pipeline > 1:
        for stages in (2, 4):
            if base.pipeline * stages <= layers:
                yield replace(base, pipeline_schedule=PipelineSchedule.interleaved, stages_per_rank=stages)


def _engines(engine: EngineConfig, layout: LayoutConfig) -> Iterator[EngineConfig]:
    for mode in MODES:
        changed = replace(engine, activation_checkpointing=mode)
        yield changed
        if layout.pipeline > 1 and engine.reduce_gradients is ReduceGradients.auto:
            yield replace(changed, reduce_gradients=ReduceGradients.once, reshard_after_forward=Reshard.never)


def _shards(rest: int, in_node: int) -> list[int]:
    """Over how many ranks weights are cut: all, or groups of one node and of powers of it."""
    sizes, size = {rest}, max(in_node, 1)
    while size < rest:
        if rest % size == 0:
            sizes.add(size)
        size *= 4
    return sorted(sizes)


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]
