"""`llama-train`, also `python -m llama_train`; under torchrun for more than one process.

The configuration is composed and checked once, on rank 0, and written into the run directory. The other ranks wait
for its path, read that file and compare its hash and the code they run: nobody composes twice, and an error ends every
rank before a process group or a GPU is held. torch is imported when there is something to train: --help and a refusal
need none.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError, UserError
from llama_foundation.files import not_for_everybody_to_write, publish_text
from llama_train.agreement import agree, difference, leave_together, other_command, software
from llama_train.config import TrainConfig
from llama_train.environment import environment_rank, local_world_size
from llama_train.survive.lock import RunLock
from llama_train.survive.signals import remember_stop

if TYPE_CHECKING:
    import torch.distributed as dist

MEETING_SECONDS = 600.0
"""How long a rank waits for the others to start, and for rank 0 to check the configuration."""


def main() -> int:
    remember_stop()
    not_for_everybody_to_write()
    gc.disable()  # until the loop: see survive/garbage.py
    # DeepSpeed's launcher adds it to every command; LOCAL_RANK says the same.
    sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank=")]
    sweeping, process = not {"-m", "--multirun"}.isdisjoint(sys.argv), os.getpid()
    rank, size = environment_rank()
    if rank != 0:
        return _follow(_meet(), rank, size)
    verdict: dict[str, Any] = {"status": 0}
    store: dist.Store | None = None

    def lead(config: TrainConfig) -> int:
        nonlocal store
        store = _meet()
        status = _lead(config, store, size, verdict)
        here = os.getpid() == process  # not as a job of its own on SLURM, which gets signals of its own
        if sweeping and here and status == 0 and asked_to_stop(config):
            raise KeyboardInterrupt  # the signal was meant for the sweep, not for one of its jobs
        return status

    try:
        if sweeping and size > 1:
            print(
                f"error: --multirun under a launcher of {size} processes: its jobs are of one process each; "
                f"use llama-launch sweep processes_per_node={size}",
                file=sys.stderr,
            )
            verdict["status"] = ConfigError.exit_code
        else:
            verdict["status"] = compose.main("train", TrainConfig, lead, objective)
    finally:
        if "config" not in verdict and size > 1:  # refused, or only shown (--cfg, --help): nobody trains
            verdict["status"] = verdict["status"] if sys.exc_info()[0] is None else 1
            store = store or _meet()
            store.set("verdict", json.dumps(verdict))
            leave_together(store, rank, size)
    return verdict["status"]


def objective(config: TrainConfig) -> float | None:
    """Return what a sweeper that searches, like Optuna's, minimises: see `summary.objective`."""
    from llama_train.observe.summary import objective

    return objective(Path(config.output) / config.name)


def asked_to_stop(config: TrainConfig) -> bool:
    """Say of a run whose process ended with status 0 whether a signal ended it before its last step."""
    try:
        summary = json.loads((Path(config.output) / config.name / "summary.json").read_text())
    except (OSError, ValueError):
        return True  # before its first step
    return summary["steps"] < min(config.steps, config.stop_at_step or config.steps)


def _meet() -> dist.Store:
    from llama_train.distributed import meet

    return meet(MEETING_SECONDS)


def _lead(config: TrainConfig, store: dist.Store, size: int, verdict: dict) -> int:
    """Take the run directory, write the configuration, tell the other ranks, train."""
    from llama_train.engine.build import check_engine
    from llama_train.parallel.float8 import check_float8
    from llama_train.parallel.overlap import check_async_tensor_parallel
    from llama_train.parallel.resolve import check_nodes, resolve_layout
    from llama_train.parallel.ring import check_ring

    check_float8(config.engine, config.model, config.cluster.device)
    check_async_tensor_parallel(config.engine, config.cluster.device)
    check_ring(config)
    check_nodes(resolve_layout(config, size), config.cluster.processes_per_node or local_world_size())
    files = check_engine(config, size)
    directory = Path(config.output) / config.name
    with RunLock(directory):
        _refuse_another_run(directory)
        publish_text(directory / "config.yaml", compose.dump(config))
        for name, text in files.items():
            publish_text(directory / name, text)
        verdict |= {"config": str(directory / "config.yaml"), "fingerprint": compose.fingerprint(config)}
        verdict |= {"software": software(), "arguments": sys.argv[1:]}
        store.set("verdict", json.dumps(verdict))
        try:
            agree(store, 0, size, None, MEETING_SECONDS)
        except RunError as error:
            return _said(error, store)
        return _train(config, store)


def _follow(store: dist.Store, rank: int, size: int) -> int:
    """Wait for rank 0's word, read the configuration it wrote, compare, train."""
    store.wait(["verdict"], timedelta(seconds=MEETING_SECONDS))
    verdict = json.loads(store.get("verdict"))
    if "config" not in verdict:
        leave_together(store, rank, size)
        return verdict["status"]
    problem = difference(software(), verdict["software"])
    if problem is not None:
        problem = f"rank {rank} ({platform.node()}) runs {problem} of rank 0; install the same on every node"
    elif (other := other_command(sys.argv[1:], verdict["arguments"])) is not None:
        problem = (
            f"rank {rank} ({platform.node()}) was started with {other} of rank 0; give every rank the same command"
        )
    config: TrainConfig | None = None
    try:
        config = _read_config(Path(verdict["config"]), verdict["fingerprint"], rank)
    except RunError as error:
        problem = str(error)
    try:
        agree(store, rank, size, problem, MEETING_SECONDS)
    except RunError as error:
        return _said(error, store)
    assert config is not None
    return _train(config, store)


def _train(config: TrainConfig, store: dist.Store) -> int:
    """Train; of an error that every rank meets, only the first rank speaks."""
    from llama_train.train import train

    try:
        return train(config, store)
    except UserError as error:
        return _said(error, store)


def _said(error: UserError, store: dist.Store) -> int:
    if _first_to_say(str(error), store):
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _first_to_say(message: str, store: dist.Store) -> bool:
    digest = hashlib.sha256(message.encode()).hexdigest()
    try:
        return store.add(f"error-{digest}", 1) == 1
    except RuntimeError:  # the store has gone down with its process
        return True


def _read_config(path: Path, fingerprint: str, rank: int) -> TrainConfig:
    """Read the configuration, waiting a little for a shared file system to show what rank 0 wrote."""
    deadline = time.monotonic() + 30
    while True:
        try:
            config = compose.load(path, TrainConfig)
            if compose.fingerprint(config) == fingerprint:
                return config
            problem = "is not the configuration that rank 0 wrote"
        except ConfigError as error:
            problem = f"cannot be read: {error}"
        if time.monotonic() > deadline:
            raise RunError(
                f"rank {rank} ({platform.node()}): {path} {problem}; output must be a directory that every node sees "
                "under this path"
            )
        time.sleep(0.5)


def _refuse_another_run(directory: Path) -> None:
    """A directory that holds something else than a run is not ours to write in."""
    if directory.is_dir() and (directory / "shards.json").exists():
        raise ConfigError(f"output/name={directory} holds token shards; choose another name for the run")
    if not os.access(directory, os.W_OK):
        raise ConfigError(f"output/name={directory} is not writable; choose another output")


if __name__ == "__main__":
    sys.exit(main())
