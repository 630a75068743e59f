"""Which engine a configuration asks for."""

import torch

from llama_train.config import EngineName, TrainConfig
from llama_train.engine.engine import Engine
from llama_train.parallel.layout import Layout


def build_engine(config: TrainConfig, layout: Layout, device: torch.device) -> Engine:
    """Build the engine that `config.engine.name` names; an engine is imported only when it is chosen."""
    match config.engine.name:
        case EngineName.native:
            from llama_train.engine.native import NativeEngine

            return NativeEngine(config, layout, device)
