"""TensorBoard as a view of the metrics."""

from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError


class TensorBoardView:
    """Writes event files below `run_directory/tensorboard`.

    A resumed run says from which step on it writes again (`purge_step`), so that TensorBoard hides what the attempts
    before wrote there (tensorboard's `EventAccumulator` with `purge_orphaned_data`, its default).

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, run_directory: Path, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"logging.tensorboard=true needs the package tensorboard ({error}): "
                "pip install tensorboard, or set logging.tensorboard=false"
            ) from error
        purge_step = start_step + 1 if start_step else None
        self._writer = SummaryWriter(str(run_directory / "tensorboard"), purge_step=purge_step)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def event(self, message: str, step: int) -> None:
        self._writer.add_text("events", message, global_step=step)

    def logger_ids(self) -> dict[str, Any]:
        return {}

    def close(self, failed: bool) -> None:
        self._writer.close()
