"""What is looked at inside of single steps, and when: traces, memory snapshots, statistics. Nothing of it changes what
is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError
from llama_train.config import TrainConfig
from llama_train.distributed import World
from llama_train.engine.engine import Engine
from llama_train.observe.memory_snapshot import start_recording, stop_recording, write_snapshot
from llama_train.observe.observers import Observers
from llama_train.observe.profiler import StepProfiler, write_profile
from llama_train.observe.statistics import LayerStatistics


class Inside:
    """Looks into the steps that `config.logging` names. Steps are counted as in metrics.jsonl: the first is 1.

    Use as a context manager around the loop: `begin`, then the step with `looks`, then `end`.

    Raises:
        ConfigError: a rank that does not exist, or a memory snapshot without CUDA.
    """

    def __init__(self, config: TrainConfig, world: World, directory: Path, engine: Engine, observe: Observers) -> None:
        self._logging, self._world, self._directory, self._observe = config.logging, world, directory, observe
        logging = config.logging
        if max(logging.profile_ranks, default=0) >= world.size:
            raise ConfigError(
                f"logging.profile_ranks={logging.profile_ranks}: this run has the ranks 0 to {world.size - 1}"
            )
        if logging.memory_snapshot_steps and world.device.type != "cuda":
            raise ConfigError(
                f"logging.memory_snapshot_steps={logging.memory_snapshot_steps}: only CUDA's allocator keeps a "
                "history, and this run is on the CPU; use logging.memory_snapshot_steps=[]"
            )
        mine = world.rank in logging.profile_ranks
        self._profiled = frozenset(logging.profile_steps if mine else ())
        self._snapshots = frozenset(logging.memory_snapshot_steps if mine else ())
        self._profiler = StepProfiler(world.device)
        self._statistics: LayerStatistics | None = None
        if logging.statistics_every:
            self._statistics = LayerStatistics(config.model, world.device, lambda: engine.chunks(optimizer=False))

    def begin(self, step: int) -> None:
        """Before the step's batch is read."""
        if step in self._snapshots:
            start_recording()
        if step in self._profiled:
            self._profiler.start()

    def looks(self, step: int) -> dict[str, Callable[..., None]]:
        """What `Engine.step` is to show on the way, as its keyword arguments."""
        if not self._due(step):
            return {}
        assert self._statistics is not None
        return {
            "look_at_gradients": self._statistics.look_at_gradients,
            "look_at_outputs": self._statistics.look_at_output,
        }

    def end(self, step: int) -> None:
        """After the step, also after one whose numbers are not finite; every rank calls it."""
        if step in self._profiled:
            rank = self._world.rank
            self._write(step, lambda: write_profile(self._profiler, self._directory / "profile", step, rank))
        if step in self._snapshots:
            self._write(step, lambda: write_snapshot(self._directory / "memory", step, self._world.rank))
        if self._due(step):
            assert self._statistics is not None
            self._observe.statistics(step, *self._statistics.take())

    def __enter__(self) -> "Inside":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._profiler.discard()
        if self._snapshots:
            stop_recording()

    def _due(self, step: int) -> bool:
        return self._statistics is not None and step % self._logging.statistics_every == 0

    def _write(self, step: int, write: Callable[[], str]) -> None:
        """Write a file that nobody trains with: a full disk is told, and the run goes on."""
        try:
            line = write()
        except (OSError, RuntimeError) as error:
            line = f"nothing could be written of what was asked for inside this step: {error}"
        self._observe.event(step, line)
