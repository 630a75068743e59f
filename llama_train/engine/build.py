"""Which engine a configuration asks for. An engine is imported only when it is chosen."""

from typing import TYPE_CHECKING

from llama_train.config import EngineName, TrainConfig

if TYPE_CHECKING:
    import torch

    from llama_train.engine.engine import Engine
    from llama_train.parallel.layout import Layout


def build_engine(config: TrainConfig, layout: "Layout", device: "torch.device") -> "Engine":
    """Build the engine that `config.engine.name` names."""
    match config.engine.name:
        case EngineName.native:
            from llama_train.engine.native import NativeEngine

            return NativeEngine(config, layout, device)
        case EngineName.deepspeed:
            from llama_train.engine.deepspeed.engine import DeepSpeedEngine

            return DeepSpeedEngine(config, layout, device)


def check_engine(config: TrainConfig, world_size: int) -> dict[str, str]:
    """Refuse what the engine cannot do, before anything starts.

    Returns:
        Files to store with the run, name to text: the configuration in the engine's own terms, where it has any.

    Raises:
        ConfigError: naming the setting, the reason and the alternative.
    """
    from llama_train.engine.deepspeed.checks import check_deepspeed, check_installed, check_not_deepspeed, check_nvme

    if config.engine.name is not EngineName.deepspeed:
        check_not_deepspeed(config.engine)
        return {}
    from llama_train.engine.deepspeed.settings import SETTINGS_FILE, resolve_settings, settings_line

    check_deepspeed(config)
    settings = resolve_settings(config, world_size)
    check_installed()
    check_nvme(config.engine)
    return {SETTINGS_FILE: settings_line(settings) + "\n"}


def describe_engine(config: TrainConfig, world_size: int) -> list[str]:
    """Return lines for the run's beginning: the configuration in the engine's own terms, where it has any."""
    if config.engine.name is not EngineName.deepspeed:
        return []
    from llama_train.engine.deepspeed.settings import resolve_settings, settings_line

    return [f"DeepSpeed: {settings_line(resolve_settings(config, world_size))}"]
