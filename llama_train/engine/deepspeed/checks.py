"""What DeepSpeed cannot do, or does wrongly, refused by name before anything starts. DeepSpeed is not imported here."""

import dataclasses
import logging
import os
import shutil
from importlib import metadata

from llama_foundation.errors import ConfigError
from llama_train.config import (
    ActivationCheckpointing,
    EngineConfig,
    EngineName,
    Float8,
    OffloadTo,
    Precision,
    TrainConfig,
)

LOG = logging.getLogger(__name__)

TESTED_VERSION = "0.19.8"

DEEPSPEED_SETTINGS = ("zero_stage", "offload_optimizer", "offload_parameters", "nvme_path", "config_file")
"""Settings of EngineConfig that only this engine reads."""

_NATIVE = {
    "reshard_after_forward": "ZeRO-3 decides itself when gathered weights are freed (stage3_* in engine.config_file)",
    "reduce_gradients": "ZeRO-1 reduces once a step, ZeRO-2 and 3 after every micro-batch; choose engine.zero_stage",
    "offload": "that is FSDP2's; use engine.offload_optimizer=cpu and, with ZeRO-3, engine.offload_parameters=cpu",
}
"""Settings that only the native engine reads, and what stands for them here."""


def check_not_deepspeed(engine: EngineConfig) -> None:
    """Refuse settings of this engine under another one.

    Raises:
        ConfigError: one of them is set.
    """
    for name in DEEPSPEED_SETTINGS:
        if getattr(engine, name) not in (None, OffloadTo.none):
            raise ConfigError(
                f"engine.{name}={_shown(getattr(engine, name))} is DeepSpeed's, but engine.name={engine.name.name}; "
                f"use engine=deepspeed, or leave engine.{name} out"
            )


def check_deepspeed(config: TrainConfig) -> None:
    """Refuse what DeepSpeed's ZeRO cannot do for this configuration.

    Raises:
        ConfigError: naming the setting, the reason and the alternative.
    """
    engine, layout = config.engine, config.layout
    assert engine.name is EngineName.deepspeed
    _check_stage(engine)
    _check_precision(engine)
    for name, why in (
        ("pipeline", "DeepSpeed's pipelines run with ZeRO-1 only, and take their micro-batches from it"),
        ("tensor", "deepspeed.initialize fails on DTensor parameters"),
        ("context", "DeepSpeed's Ulysses leaves out gradients of context ranks under ZeRO 1 and 2"),
        ("data_replicate", "ZeRO cuts over all data-parallel ranks at once; replicas of cut weights are FSDP2's HSDP"),
    ):
        if getattr(layout, name) != 1:
            raise ConfigError(
                f"layout.{name}={getattr(layout, name)} with engine=deepspeed: {why}; use layout.{name}=1, or "
                "engine=native"
            )
    defaults = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
    for name, why in _NATIVE.items():
        if getattr(engine, name) != defaults[name]:
            raise ConfigError(f"engine.{name}={_shown(getattr(engine, name))} with engine=deepspeed: {why}")
    if engine.float8 is not Float8.none:
        raise ConfigError(
            f"engine.float8={engine.float8.name} with engine=deepspeed: torchao's float8 layers have not been tried "
            "under ZeRO's hooks; use engine.float8=none, or engine=native"
        )
    if engine.activation_checkpointing is ActivationCheckpointing.selective and engine.zero_stage == 3:
        raise ConfigError(
            "engine.activation_checkpointing=selective with engine.zero_stage=3: a block that is computed again "
            "gathers other weights than the first time, which torch's selective checkpointing refuses; use full "
            "or every_n, or engine.zero_stage=1 or 2"
        )
    if engine.compile and engine.zero_stage == 3:
        raise ConfigError(
            "engine.compile=true with engine.zero_stage=3: every gathering breaks the graph and the compiler gives up "
            "at its recompile limit; use engine.zero_stage=1 or 2, or engine=native"
        )


def check_installed() -> None:
    """Refuse to go on without DeepSpeed, and say once that it is not the version that was tested.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"engine=deepspeed needs DeepSpeed, which is not installed: pip install deepspeed=={TESTED_VERSION}, or "
            "pip install 'llama-train[deepspeed]'; or use engine=native"
        ) from None
    if version != TESTED_VERSION:
        LOG.warning(
            "deepspeed %s is installed, and this engine was tested with %s only: it reads DeepSpeed's internals, which "
            "change between versions",
            version,
            TESTED_VERSION,
        )


def check_nvme(engine: EngineConfig) -> None:
    """Refuse offloading to NVMe where DeepSpeed cannot read and write files in the background.

    Raises:
        ConfigError: no path, or one that cannot be written to; no libaio, compiler or ninja.
    """
    asked = [name for name in ("offload_optimizer", "offload_parameters") if getattr(engine, name) is OffloadTo.nvme]
    if not asked:
        return
    if engine.nvme_path is None:
        raise ConfigError(f"engine.{asked[0]}=nvme needs engine.nvme_path=DIR, a directory on the NVMe device")
    if not os.access(engine.nvme_path, os.W_OK | os.X_OK) or not os.path.isdir(engine.nvme_path):
        raise ConfigError(f"engine.nvme_path={engine.nvme_path} is no directory that can be written to; make it")
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False) or shutil.which("ninja") is None:
        raise ConfigError(
            f"engine.{asked[0]}=nvme needs libaio with its header, a C++ compiler and ninja, to build DeepSpeed's "
            "file reader once on every machine (apt install libaio-dev g++; pip install ninja); install them, or use "
            f"engine.{asked[0]}=cpu"
        )


def _check_stage(engine: EngineConfig) -> None:
    if engine.zero_stage not in (1, 2, 3):
        why = ""
        if engine.zero_stage == 0:
            why = " (in bf16 ZeRO-0 decays the weights once before training; for copies on all ranks use engine=native)"
        raise ConfigError(f"engine.zero_stage={_shown(engine.zero_stage)} must be 1, 2 or 3{why}")
    if engine.offload_parameters is not OffloadTo.none and engine.zero_stage != 3:
        raise ConfigError(
            f"engine.offload_parameters={engine.offload_parameters.name} needs engine.zero_stage=3, not "
            f"{engine.zero_stage}; only ZeRO-3 cuts the weights"
        )
    if engine.offload_optimizer is OffloadTo.nvme and engine.zero_stage != 3:
        raise ConfigError(
            f"engine.offload_optimizer=nvme needs engine.zero_stage=3, not {engine.zero_stage}; use "
            "engine.offload_optimizer=cpu"
        )


def _check_precision(engine: EngineConfig) -> None:
    if engine.precision is Precision.fp64:
        raise ConfigError(
            "engine.precision=fp64 with engine=deepspeed: DeepSpeed has no float64; use engine.precision=fp32, or "
            "engine=native"
        )


def _shown(value: object) -> object:
    return getattr(value, "name", "null" if value is None else value)
