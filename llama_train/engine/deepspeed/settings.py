"""The configuration that DeepSpeed is given: made from ours, and from a user's ds_config.json where it adds to it.

Only JSON values here: DeepSpeed is not imported.
"""

import json
import math
from typing import Any

from llama_train.config import EngineConfig, OffloadTo, Precision, TrainConfig
from llama_train.engine.deepspeed.config_file import read_config_file
from llama_train.model.names import parameter_shapes
from llama_train.model.size import parameter_count

SETTINGS_FILE = "deepspeed.json"
"""In the run directory: what DeepSpeed was given."""

_BUFFER_STEP = 1 << 18  # elements: 1 MiB in float32, below which DeepSpeed writes nothing to files

_LARGEST_BUCKET = 500_000_000  # elements: DeepSpeed's own default


def resolve_settings(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `world_size` ranks.

    Raises:
        ConfigError: engine.config_file cannot be read, has unknown keys, or contradicts our settings.
    """
    settings = _ours(config, world_size)
    if config.engine.config_file is not None:
        for path, value in read_config_file(config, settings["gradient_accumulation_steps"]).items():
            put(settings, path, value)
    return settings


def settings_line(settings: dict[str, Any]) -> str:
    """Return the settings in one line, the same for the same settings."""
    return json.dumps(settings, sort_keys=True)


def _ours(config: TrainConfig, world_size: int) -> dict[str, Any]:
    engine, batch, micro = config.engine, config.data.batch_size, config.layout.micro_batch_size
    # DeepSpeed allocates its buckets whole, however small the model is.
    bucket = min(_LARGEST_BUCKET, -(-parameter_count(config.model) // 2) * 2)
    zero: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if engine.offload_optimizer is not OffloadTo.none:
        zero["offload_optimizer"] = _offload(engine, engine.offload_optimizer, config.cluster.device)
    if engine.offload_parameters is not OffloadTo.none:
        zero["offload_param"] = _offload(engine, engine.offload_parameters, config.cluster.device)
        if engine.offload_parameters is OffloadTo.nvme:
            # It allocates five of these; its own default is 100 million elements each.
            largest = max(math.prod(shape) for shape in parameter_shapes(config.model).values())
            zero["offload_param"]["buffer_size"] = -(-largest // _BUFFER_STEP) * _BUFFER_STEP
    settings: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": batch // (micro * world_size),
        "gradient_clipping": 0.0,  # the engine clips, by the norm that it reports
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        # Its own CPUAdam would be compiled at the start; torch's fused AdamW runs on the CPU as it is.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,  # metrics.jsonl has them
    }
    if engine.precision is Precision.bf16:
        settings["bf16"] = {"enabled": True}
    return settings


def _offload(engine: EngineConfig, where: OffloadTo, device: str) -> dict[str, Any]:
    offload: dict[str, Any] = {"device": where.name, "pin_memory": device != "cpu"}
    if where is OffloadTo.nvme:
        offload["nvme_path"] = engine.nvme_path
    return offload


def put(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at the dotted key `path`; sections on the way are made."""
    *sections, name = path.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[name] = value
