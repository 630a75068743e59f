"""Commands that ask a model, on one process or on every rank of torchrun.

torch is imported when there is something to ask: --help and a refusal need none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf

from llama_foundation import compose
from llama_foundation.errors import ConfigError, UserError
from llama_train.agreement import leave_together
from llama_train.environment import environment_rank

if TYPE_CHECKING:
    import torch.distributed as dist

MEETING_SECONDS = 600.0
"""How long a rank waits for the others, to start and in a collective."""

Config = TypeVar("Config")


def run_command(entry: str, schema: type[Config], command: Callable[[Config, dist.Store], int | None]) -> int:
    """Run `command` on every rank, with the configuration that rank 0 composed; return the exit status.

    Of an error that every rank meets, only the first rank speaks.
    """
    rank, size = environment_rank()
    if rank != 0:
        return _follow(_meet(), rank, size, schema, command)
    verdict: dict[str, Any] = {"status": 0}
    store: dist.Store | None = None

    def lead(config: Config) -> int | None:
        nonlocal store
        store = _meet()
        verdict["config"] = compose.dump(config)
        store.set("verdict", json.dumps(verdict))
        try:
            return command(config, store)
        except UserError as error:
            store.set(_error_key(error), "said")
            raise

    try:
        verdict["status"] = compose.main(entry, schema, lead)
    finally:
        if "config" not in verdict and size > 1:  # refused, or only shown (--cfg, --help)
            verdict["status"] = verdict["status"] if sys.exc_info()[0] is None else 1
            store = store or _meet()
            store.set("verdict", json.dumps(verdict))
            leave_together(store, rank, size)
    return verdict["status"]


def check_device(device: str) -> None:
    """Refuse a device that does not exist.

    Raises:
        ConfigError: it is none of auto, cpu and cuda, or there is no CUDA device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={device}; use auto, cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("device=cuda, but torch finds no CUDA device here; use device=cpu")


def _follow(
    store: dist.Store, rank: int, size: int, schema: type[Config], command: Callable[[Config, dist.Store], int | None]
) -> int:
    """Wait for rank 0's configuration and run `command` with it."""
    store.wait(["verdict"], timedelta(seconds=MEETING_SECONDS))
    verdict = json.loads(store.get("verdict"))
    if "config" not in verdict:
        leave_together(store, rank, size)
        return verdict["status"]
    try:
        return command(compose.to_object(OmegaConf.create(verdict["config"]), schema), store) or 0
    except UserError as error:
        if not _said_by_rank_0(error, store):
            print(f"rank {rank}: error: {error}", file=sys.stderr)
        return error.exit_code


def _meet() -> dist.Store:
    from llama_train.distributed import meet

    return meet(MEETING_SECONDS)


def _error_key(error: UserError) -> str:
    return f"error-{hashlib.sha256(str(error).encode()).hexdigest()}"


def _said_by_rank_0(error: UserError, store: dist.Store) -> bool:
    import torch.distributed as dist

    try:
        store.wait([_error_key(error)], timedelta(seconds=2))
    except dist.DistError:
        return False
    return True
