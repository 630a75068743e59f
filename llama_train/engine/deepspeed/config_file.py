"""An existing ds_config.json beside our settings: what is passed on, what must agree with ours, what is refused."""

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError
from llama_train.config import OffloadTo, Precision, TrainConfig

PASSED = frozenset(
    [
        "aio.block_size",
        "aio.intra_op_parallelism",
        "aio.overlap_events",
        "aio.queue_depth",
        "aio.single_submit",
        "aio.thread_count",
        "aio.use_gds",
        "comms_logger.debug",
        "comms_logger.enabled",
        "comms_logger.prof_all",
        "comms_logger.prof_ops",
        "comms_logger.verbose",
        "dump_state",
        "memory_breakdown",
        "steps_per_print",
        "timers.throughput.enabled",
        "timers.throughput.synchronized",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_optimization.allgather_bucket_size",
        "zero_optimization.allgather_partitions",
        "zero_optimization.contiguous_gradients",
        "zero_optimization.ignore_unused_parameters",
        "zero_optimization.log_trace_cache_warnings",
        "zero_optimization.memory_efficient_linear",
        "zero_optimization.offload_optimizer.buffer_count",
        "zero_optimization.offload_optimizer.fast_init",
        "zero_optimization.offload_optimizer.pin_memory",
        "zero_optimization.offload_optimizer.pipeline_read",
        "zero_optimization.offload_optimizer.pipeline_write",
        "zero_optimization.offload_param.buffer_count",
        "zero_optimization.offload_param.buffer_size",
        "zero_optimization.offload_param.max_in_cpu",
        "zero_optimization.offload_param.pin_memory",
        "zero_optimization.overlap_comm",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.reduce_scatter",
        "zero_optimization.round_robin_gradients",
        "zero_optimization.stage3_allgather_sequential",
        "zero_optimization.stage3_max_live_parameters",
        "zero_optimization.stage3_max_reuse_distance",
        "zero_optimization.stage3_model_persistence_threshold",
        "zero_optimization.stage3_module_granularity_threshold",
        "zero_optimization.stage3_param_persistence_threshold",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_use_all_reduce_for_fetch_params",
        "zero_optimization.sub_group_size",
        "zero_optimization.use_multi_rank_bucket_allreduce",
    ]
)
"""Keys that change how fast or how large DeepSpeed runs, or what it prints, and not what is computed."""

IGNORED = frozenset(
    [
        "dataloader_drop_last",
        "zero_optimization.elastic_checkpoint",
        "zero_optimization.gather_16bit_weights_on_model_save",
        "zero_optimization.load_from_fp32_weights",
        "zero_optimization.pipeline_loading_checkpoint",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.stage3_gather_fp16_weights_on_model_save",
        "zero_force_ds_cpu_optimizer",
    ]
)
"""Keys about DeepSpeed's own checkpoints, optimizer and loader, which are not used: they mean nothing here."""

REFUSED = {
    "activation_checkpointing": "set engine.activation_checkpointing",
    "amp": "set engine.precision",
    "autotuning": "not supported",
    "bf16.bf16_master_weights_and_grads": "master weights are float32",
    "bf16.bf16_optimizer_states": "optimizer state is float32",
    "bf16.check_grad_overflow": "the engine looks for what is not finite itself",
    "bf16.immediate_grad_update": "the engine says when gradients are added up",
    "checkpoint": "checkpoints are llama-train's own; set checkpoint.*",
    "compile": "set engine.compile",
    "compression_training": "not supported",
    "csv_monitor": "metrics.jsonl has everything; set logging.*",
    "curriculum_learning": "set data.segments",
    "data_efficiency": "set data.segments",
    "data_sampler": "the order of tokens is llama-train's own",
    "elasticity": "a checkpoint can be resumed on any number of processes",
    "flops_profiler": "set logging.profile_steps",
    "hybrid_engine": "not supported",
    "monitor": "set logging.*",
    "pipeline": "not supported; use engine=native with layout.pipeline",
    "quantize_training": "not supported",
    "scheduler": "set schedule.*",
    "sequence_parallel_size": "not supported; use engine=native with layout.context",
    "sparse_attention": "not supported",
    "sparse_gradients": "not supported",
    "tensor_parallel": "not supported; use engine=native with layout.tensor",
    "tensorboard": "set logging.tensorboard",
    "torch_autocast": "set engine.precision",
    "wandb": "set logging.wandb",
    "zero_optimization.cpu_offload": "set engine.offload_optimizer=cpu",
    "zero_optimization.cpu_offload_param": "set engine.offload_parameters=cpu",
    "zero_optimization.offload_optimizer.super_offload": "not supported",
    "zero_optimization.parameter_alignment": "it moves what this engine reads",
    "zero_optimization.zenflow": "its updates are late by some steps",
    "zero_optimization.zero_hpz_partition_size": "not supported; use engine=native with layout.data_replicate",
    "zero_optimization.zero_quantized_gradients": "it changes what is computed",
    "zero_optimization.zero_quantized_weights": "it changes what is computed",
}
"""Keys, and all below them, that this engine does not take, and what to do instead."""

_OURS: dict[str, tuple[str, Callable[[TrainConfig], Any]]] = {
    "bf16.enabled": ("engine.precision", lambda c: c.engine.precision is Precision.bf16),
    "bfloat16.enabled": ("engine.precision", lambda c: c.engine.precision is Precision.bf16),
    "fp16.enabled": ("engine.precision", lambda c: False),
    "gradient_clipping": ("optimizer.max_grad_norm", lambda c: c.optimizer.max_grad_norm),
    "optimizer.params.betas": ("optimizer.beta1 and beta2", lambda c: [c.optimizer.beta1, c.optimizer.beta2]),
    "optimizer.params.eps": ("optimizer.epsilon", lambda c: c.optimizer.epsilon),
    "optimizer.params.lr": ("optimizer.learning_rate", lambda c: c.optimizer.learning_rate),
    "optimizer.params.weight_decay": ("optimizer.weight_decay", lambda c: c.optimizer.weight_decay),
    "optimizer.type": ("optimizer", lambda c: "AdamW"),
    "train_batch_size": ("data.batch_size", lambda c: c.data.batch_size),
    "train_micro_batch_size_per_gpu": ("layout.micro_batch_size", lambda c: c.layout.micro_batch_size),
    "zero_optimization.nvme_path": ("engine.nvme_path", lambda c: c.engine.nvme_path),
    "zero_optimization.offload_optimizer.device": (
        "engine.offload_optimizer",
        lambda c: c.engine.offload_optimizer.name,
    ),
    "zero_optimization.offload_optimizer.nvme_path": ("engine.nvme_path", lambda c: c.engine.nvme_path),
    "zero_optimization.offload_param.device": ("engine.offload_parameters", lambda c: c.engine.offload_parameters.name),
    "zero_optimization.offload_param.nvme_path": ("engine.nvme_path", lambda c: c.engine.nvme_path),
    "zero_optimization.stage": ("engine.zero_stage", lambda c: c.engine.zero_stage),
}
"""Keys that say what a setting of ours says: they must agree."""

_FIXED = {
    "communication_data_type": "fp32",
    "data_types.grad_accum_dtype": "fp32",
    "gradient_predivide_factor": 1.0,
    "prescale_gradients": False,
    "zero_optimization.offload_optimizer.ratio": 1.0,
}
"""Keys that can have one value here: gradients are reduced in float32 and summed, and offloading is whole."""

_FREE_WHEN_OFF = ("fp16", "bf16", "bfloat16", *REFUSED)
"""Sections whose other keys mean nothing where `enabled` is false."""


def read_config_file(config: TrainConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of engine.config_file that are to be passed on, as dotted key to value.

    "auto", which Hugging Face's files have, means ours.

    Args:
        resolved: DeepSpeed's configuration as ours alone make it.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, cannot be used here, or contradicts a setting of ours:
            both values are named.
    """
    assert config.engine.config_file is not None
    path = Path(config.engine.config_file)
    where = f"engine.config_file={path}"
    passed = {}
    for key, value in _leaves(_read(path, where)):
        if value == "auto" or key in IGNORED:
            continue
        if key in PASSED:
            _check_offload_is_on(key, config, where)
            passed[key] = value
        else:
            _check_agrees(key, value, config, resolved, where)
    return passed


def _read(path: Path, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}: {name} appears twice; keep one of them")
        return dict(pairs)

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: holds no JSON object, which DeepSpeed's configuration is")
    return value


def _leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its dotted key; sections that are switched off, and those refused anyway, as a whole."""
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in REFUSED:
            off = key in _FREE_WHEN_OFF and value.get("enabled", True) is False
            yield from ([(f"{key}.enabled", False)] if off else _leaves(value, f"{key}."))
        elif not (isinstance(value, dict) and (not value or value.get("enabled", True) is False)):
            yield key, value


def _check_agrees(key: str, value: Any, config: TrainConfig, resolved: dict[str, Any], where: str) -> None:
    shown = json.dumps(value)
    for refused, instead in REFUSED.items():
        if key == refused or key.startswith(f"{refused}."):
            if value is False or value == 0 or (key.endswith("hpz_partition_size") and value == 1):
                return
            raise ConfigError(f"{where}: {key}: {instead}; take the key out")
    if key == "gradient_accumulation_steps":
        ours, setting = resolved[key], "data.batch_size, layout.micro_batch_size and the number of processes"
    elif key in _FIXED:
        ours, setting = _FIXED[key], "engine=deepspeed"
    elif key in _OURS:
        setting, get = _OURS[key]
        ours = get(config)
    else:
        known = [*PASSED, *IGNORED, *REFUSED, *_OURS, *_FIXED, "gradient_accumulation_steps"]
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "take it out"
        raise ConfigError(f"{where}: {key} is not a key that this engine knows; {hint}")
    if not _equal(value, ours):
        raise ConfigError(
            f"{where}: {key}={shown}, but {setting} says {json.dumps(ours)}; make them agree, or take the key out"
        )


def _equal(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, str) and isinstance(ours, str):
        return theirs.lower() == ours.lower()
    if isinstance(theirs, bool) != isinstance(ours, bool):
        return False
    return theirs == ours


def _check_offload_is_on(key: str, config: TrainConfig, where: str) -> None:
    for section, setting in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        if f".{section}." in key and getattr(config.engine, setting) is OffloadTo.none:
            raise ConfigError(
                f"{where}: {key} is set, but engine.{setting}=none; set engine.{setting}, or take the section out"
            )
