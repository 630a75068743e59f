"""Weights & Biases as a view of the metrics."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from llama_foundation.errors import ConfigError

_DEFAULT_SERVER = "https://api.wandb.ai"


class WeightsAndBiasesView:
    """One W&B run for one training run, across all its attempts.

    Values are logged with their own `step`, declared as the x axis: W&B's built-in step may only grow, and what a
    resumed run logs again would be dropped without a word. Only the configuration and the numbers leave this machine;
    code, console output and git data do not.

    Args:
        config: `logging.wandb_project` and so on, and what to show as the run's configuration, as plain values.
        run_id: what `logger_ids` of the attempt before gave; None starts a new W&B run.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(
        self, run_directory: Path, name: str, project: str, entity: str | None, config: dict, run_id: str | None
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"logging.wandb=true needs the package wandb ({error}): pip install wandb, or set logging.wandb=false"
            ) from error
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=name,
            id=run_id,
            resume="allow",
            config=config,
            dir=str(run_directory),
            mode=None if "WANDB_MODE" in os.environ or has_key() else "offline",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, disable_job_creation=True
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def event(self, message: str, step: int) -> None:
        self._run.log({"event": message, "step": step})

    def logger_ids(self) -> dict[str, Any]:
        return {"wandb": self._run.id}

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def has_key() -> bool:
    """Whether W&B could log in: `WANDB_API_KEY`, or a password for its server in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlparse(os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)).hostname or ""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False
