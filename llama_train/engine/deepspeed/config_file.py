"""An existing ds_config.json beside our settings: what is passed on, what must agree with ours, what is refused."""

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError
from llama_train.config import OffloadTo, Precision, TrainConfig

PASSED: dict[str, type] = {
    "aio.block_size": int,
    "aio.intra_op_parallelism": int,
    "aio.overlap_events": bool,
    "aio.queue_depth": int,
    "aio.single_submit": bool,
    "aio.thread_count": int,
    "aio.use_gds": bool,
    "comms_logger.debug": bool,
    "comms_logger.enabled": bool,
    "comms_logger.prof_all": bool,
    "comms_logger.prof_ops": list,
    "comms_logger.verbose": bool,
    "dump_state": bool,
    "memory_breakdown": bool,
    "steps_per_print": int,
    "timers.throughput.enabled": bool,
    "timers.throughput.synchronized": bool,
    "wall_clock_breakdown": bool,
    "zero_allow_untested_optimizer": bool,
    "zero_optimization.allgather_bucket_size": int,
    "zero_optimization.allgather_partitions": bool,
    "zero_optimization.contiguous_gradients": bool,
    "zero_optimization.ignore_unused_parameters": bool,
    "zero_optimization.log_trace_cache_warnings": bool,
    "zero_optimization.memory_efficient_linear": bool,
    "zero_optimization.offload_optimizer.buffer_count": int,
    "zero_optimization.offload_optimizer.fast_init": bool,
    "zero_optimization.offload_optimizer.pin_memory": bool,
    "zero_optimization.offload_optimizer.pipeline_read": bool,
    "zero_optimization.offload_optimizer.pipeline_write": bool,
    "zero_optimization.offload_param.buffer_count": int,
    "zero_optimization.offload_param.buffer_size": int,
    "zero_optimization.offload_param.max_in_cpu": int,
    "zero_optimization.offload_param.pin_memory": bool,
    "zero_optimization.overlap_comm": bool,
    "zero_optimization.reduce_bucket_size": int,
    "zero_optimization.reduce_scatter": bool,
    "zero_optimization.round_robin_gradients": bool,
    "zero_optimization.stage3_allgather_sequential": bool,
    "zero_optimization.stage3_max_live_parameters": int,
    "zero_optimization.stage3_max_reuse_distance": int,
    "zero_optimization.stage3_model_persistence_threshold": int,
    "zero_optimization.stage3_module_granularity_threshold": int,
    "zero_optimization.stage3_param_persistence_threshold": int,
    "zero_optimization.stage3_prefetch_bucket_size": int,
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": bool,
    "zero_optimization.sub_group_size": int,
    "zero_optimization.use_multi_rank_bucket_allreduce": bool,
}
"""Keys that change how fast or how large DeepSpeed runs, or what it prints, and not what is computed; their types."""

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

_ACCUMULATION = "gradient_accumulation_steps"
"""Says what the size of the batch and the number of processes say."""

_FREE_WHEN_OFF = ("fp16", "bf16", "bfloat16", *REFUSED)
"""Sections whose other keys mean nothing where `enabled` is false."""


def read_config_file(config: TrainConfig, accumulation: int | None) -> dict[str, Any]:
    """Return the settings of engine.config_file that are to be passed on, as dotted key to value.

    "auto", which Hugging Face's files have, means ours.

    Args:
        accumulation: micro-batches per step and process; None: the number of processes is not known, and that key is
            not looked at.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, cannot be used here, or contradicts a setting of ours:
            both values are named.
    """
    assert config.engine.config_file is not None
    where = f"engine.config_file={config.engine.config_file}"
    entries = _entries(config.engine.config_file)
    for key, value in entries.items():
        if key in PASSED:
            _check_type(key, value, where)
            _check_offload_is_on(key, config, where)
        elif key != _ACCUMULATION:
            _check_agrees(key, value, config, where)
        elif accumulation is not None:
            setting = "data.batch_size, layout.micro_batch_size and the number of processes"
            _check_equal(key, value, setting, accumulation, where)
    return _passed(entries)


def passed_on(file: str) -> dict[str, Any]:
    """Return what `read_config_file` returns of a `file` that it has accepted."""
    return _passed(_entries(file))


def _passed(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key in PASSED}


def _entries(file: str) -> dict[str, Any]:
    """Return what the file says, as dotted key to value."""
    read = _read(Path(file), f"engine.config_file={file}")
    return {key: value for key, value in _leaves(read) if value != "auto" and key not in IGNORED}


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


def _check_agrees(key: str, value: Any, config: TrainConfig, where: str) -> None:
    for refused, instead in REFUSED.items():
        if key == refused or key.startswith(f"{refused}."):
            if value is False or value == 0 or (key.endswith("hpz_partition_size") and value == 1):
                return
            raise ConfigError(f"{where}: {key}: {instead}; take the key out")
    if key in _FIXED:
        _check_equal(key, value, "engine=deepspeed", _FIXED[key], where)
    elif key in _OURS:
        setting, get = _OURS[key]
        _check_equal(key, value, setting, get(config), where)
    else:
        known = [*PASSED, *IGNORED, *REFUSED, *_OURS, *_FIXED, _ACCUMULATION]
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "take it out"
        raise ConfigError(f"{where}: {key} is not a key that this engine knows; {hint}")


def _check_equal(key: str, value: Any, setting: str, ours: Any, where: str) -> None:
    if not _equal(value, ours):
        raise ConfigError(
            f"{where}: {key}={json.dumps(value)}, but {setting} says {json.dumps(ours)}; make them agree, or take the "
            "key out"
        )


def _equal(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, str) and isinstance(ours, str):
        return theirs.lower() == ours.lower()
    if isinstance(theirs, bool) != isinstance(ours, bool):
        return False
    return theirs == ours


def _check_type(key: str, value: Any, where: str) -> None:
    names = {bool: "true or false", int: "a whole number, 0 or more", list: "a list"}
    fits = isinstance(value, PASSED[key])
    if PASSED[key] is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())  # 5e8
        fits = whole and not isinstance(value, bool) and value >= 0
    if not fits:
        raise ConfigError(f"{where}: {key}={json.dumps(value)} must be {names[PASSED[key]]}")


def _check_offload_is_on(key: str, config: TrainConfig, where: str) -> None:
    for section, setting in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        if f".{section}." in key and getattr(config.engine, setting) is OffloadTo.none:
            raise ConfigError(
                f"{where}: {key} is set, but engine.{setting}=none; set engine.{setting}, or take the section out"
            )
