"""Published runs: what was measured elsewhere, as configurations that a plan can be made for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llama_foundation.compose import CONFIGS
from llama_train.config import (
    ActivationCheckpointing,
    DataConfig,
    EngineConfig,
    Float8,
    LayoutConfig,
    ModelConfig,
    PipelineSchedule,
    Precision,
    ReduceGradients,
    Reshard,
    RopeScaling,
    TrainConfig,
)
from llama_train.model.size import forward_flops
from llama_train.parallel.layout import Layout
from llama_train.plan.hardware import Hardware, read_accelerator
from llama_train.plan.memory import most_memory
from llama_train.plan.speed import FIT, Fit, step_time

RUNS = Path(__file__).parent / "published_runs.yaml"


@dataclass(frozen=True)
class PublishedRun:
    """One row of published_runs.yaml."""

    name: str
    source: str
    config: TrainConfig
    layout: Layout
    hardware: Hardware
    tokens_per_second: float  # per GPU; where TFLOP/s are published, those over the operations of causal attention
    memory_gib: float | None
    assumed: tuple[str, ...]
    memory_as_compiled: bool  # its recomputation leaves no copies in float32, as the compiler's
    fits: bool  # whether the efficiencies are fitted to it, or it is kept to test them


def published_runs() -> list[PublishedRun]:
    """Read all runs. Of every source the 2nd, 4th, ... in the file's order fit, the others test."""
    seen: dict[str, int] = {}
    runs = []
    for row in yaml.safe_load(RUNS.read_text()):
        source = row["source"].split(",")[0]
        seen[source] = seen.get(source, 0) + 1
        runs.append(_run(row, fits=seen[source] % 2 == 0))
    return runs


def predicted_speed(run: PublishedRun, fit: Fit = FIT, hardware: Hardware | None = None) -> float:
    """Return tokens per second and GPU."""
    data = run.config.data
    time = step_time(run.config, run.layout, hardware or run.hardware, data.sequence_length, data.batch_size, fit)
    return time.tokens_per_second_per_device


def predicted_memory(run: PublishedRun) -> float:
    """Return the peak of the allocator, in GiB."""
    data = run.config.data
    micro_batches = data.batch_size // (run.layout.data_world * run.layout.micro_batch_size)
    config = run.config
    if run.memory_as_compiled:
        config = replace(config, engine=replace(config.engine, compile=True))
    return most_memory(config, run.layout, data.sequence_length, micro_batches).allocated / 2**30


def model_config(name: str) -> ModelConfig:
    """Return the shape in configs/model/<name>.yaml."""
    values = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())
    return _shape(values)


def _shape(values: dict[str, Any]) -> ModelConfig:
    scaling = values.pop("rope_scaling", None)
    return ModelConfig(**values, rope_scaling=RopeScaling(**scaling) if scaling else None)


def _run(row: dict[str, Any], fits: bool) -> PublishedRun:
    shape = row["model"]
    length = row["sequence_length"]
    own = isinstance(shape, dict)
    model = _shape({"name": row["name"], "context": length, **shape}) if own else model_config(shape)
    model.context = max(model.context, length)
    axes = {axis: row.get(axis, 1) for axis in ("pipeline", "data_replicate", "context", "tensor")}
    others = axes["pipeline"] * axes["data_replicate"] * axes["context"] * axes["tensor"]
    layout = LayoutConfig(
        **axes,
        data_shard=row["gpus"] // others,
        micro_batch_size=row["micro_batch_size"],
        pipeline_schedule=PipelineSchedule[row.get("schedule", "one_f_one_b")],
        stages_per_rank=row.get("stages_per_rank", 1),
        layers_per_stage=row.get("layers_per_stage"),
    )
    engine = EngineConfig(
        precision=Precision.bf16,
        activation_checkpointing=ActivationCheckpointing[row["checkpointing"]],
        activation_checkpointing_every=row.get("every", 2),
        float8=Float8.tensorwise if row.get("float8") else Float8.none,
        compile=row.get("compile", True) or row.get("fused", False),
        async_tensor_parallel=row.get("asynchronous", False),
        reshard_after_forward=Reshard.auto if row.get("reshard", True) else Reshard.never,
        reduce_gradients=ReduceGradients[row.get("reduce", "auto")],
        loss_chunk=0,
    )
    data = DataConfig(shards="none", sequence_length=length, batch_size=row["batch_size"], document_masks=False)
    speed = row.get("tokens_per_second_per_gpu")
    if speed is None:
        flops = forward_flops(model, length)
        speed = row["tflops_per_gpu"] * 1e12 / (3 * (flops.matmul + flops.attention_causal))
    accelerator = read_accelerator(row["accelerator"])
    return PublishedRun(
        name=row["name"],
        source=row["source"],
        config=TrainConfig(steps=1, model=model, data=data, layout=layout, engine=engine),
        layout=Layout(
            data_replicate=layout.data_replicate,
            data_shard=layout.data_shard,
            rank=0,
            micro_batch_size=layout.micro_batch_size,
            pipeline=layout.pipeline,
            context=layout.context,
            tensor=layout.tensor,
            config=layout,
        ),
        hardware=Hardware(accelerator, row["devices_per_node"], row["network_gb_per_second"] * 1e9),
        tokens_per_second=speed,
        memory_gib=row.get("memory_gib"),
        memory_as_compiled=row.get("memory_as_compiled", False),
        assumed=tuple(row.get("assumed", ())),
        fits=fits,
    )
