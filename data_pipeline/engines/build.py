"""Builds the engine that does the tasks: this machine, a Ray cluster, or workers that share a directory."""

from pathlib import Path

from data_pipeline.config import DataPipelineConfig, EngineName
from data_pipeline.engines.array import ArrayEngine
from data_pipeline.engines.local import LocalEngine
from data_pipeline.engines.ray import RayEngine
from data_pipeline.engines.work import Engine


def make_engine(config: DataPipelineConfig, output: Path) -> Engine:
    """Return the engine that the configuration asks for; Ray is imported only when it is chosen."""
    settings = config.engine
    match settings.name:
        case EngineName.local:
            return LocalEngine(config.workers)
        case EngineName.ray:
            return RayEngine(config.workers, settings.address, settings.cpus_per_task, settings.tasks_per_process)
        case EngineName.array:
            return ArrayEngine(config.workers, settings.lease_seconds)
