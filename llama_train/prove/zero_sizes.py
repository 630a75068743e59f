"""DeepSpeed's sizes for a shrunk model.

Its defaults are made for billions of elements. Under them a shrunk model would fill one bucket and one sub-group, and
ZeRO-3 would keep every weight whole on every rank: nothing that it does to a large model would be proven.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_foundation.files import publish_text
from llama_train.config import EngineName, ModelConfig, TrainConfig
from llama_train.engine.deepspeed.config_file import passed_on
from llama_train.engine.deepspeed.settings import put
from llama_train.model.size import parameter_count

PARTS = 4
"""A shrunk model fills at least so many buckets and sub-groups."""

_SIZES = {
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
"""Keys of zero_optimization that count elements, and DeepSpeed 0.19.8's own values (runtime/zero/config.py)."""

_KEPT_WHOLE = "stage3_param_persistence_threshold"


def with_shrunk_sizes(config: TrainConfig, work: Path) -> TrainConfig:
    """Return `config` with an engine.config_file in `work`: the one that it has, if any, in the model's size."""
    if config.engine.name is not EngineName.deepspeed:
        return config
    passed = {} if config.engine.config_file is None else passed_on(config.engine.config_file)
    settings: dict[str, Any] = {}
    for key, value in shrunk_sizes(passed, config.model).items():
        put(settings, key, value)
    publish_text(work / "ds_config.json", json.dumps(settings))
    return replace(config, engine=replace(config.engine, config_file=str(work / "ds_config.json")))


def shrunk_sizes(passed: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Return `passed`, dotted keys to values, with sizes that cut `model` into pieces; smaller ones stay.

    With ZeRO-3 norms are kept whole and matrices are not, as in a large model.
    """
    sizes = {f"zero_optimization.{name}": value for name, value in _SIZES.items()}
    settings = sizes | passed
    # It would be allocated five times; without it, the engine takes what the model needs.
    settings.pop("zero_optimization.offload_param.buffer_size", None)
    for key in sizes:
        most = model.hidden_size if key.endswith(_KEPT_WHOLE) else parameter_count(model) // PARTS
        settings[key] = min(settings[key], most)
    return settings
