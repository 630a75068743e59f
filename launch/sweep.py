"""`llama-launch sweep`: llama-train --multirun, here or on SLURM, and what came out, side by side."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from launch.compare import compare
from launch.config import LaunchConfig
from launch.local import processes_here, run_to_end
from launch.slurm import require_slurm
from launch.snapshot import refuse_secrets
from llama_foundation import compose
from llama_foundation.errors import ConfigError, RunError
from llama_train.config import TrainConfig
from llama_train.config.slurm import SlurmConfig

SWEEPS = compose.CONFIGS / "sweep"


@dataclass
class SweepConfig:
    """Where the jobs of a sweep run. Here each takes the whole machine, on SLURM it is one process with one GPU."""

    sweep: str | None = None  # a file of configs/sweep: settings to begin with
    where: str = "local"  # local: one after the other; slurm: as jobs of one task each
    processes_per_node: int | None = None  # local: of one job; null: as for llama-launch local
    at_once: int = 16  # jobs that run at the same time on SLURM
    compare_only: bool = False  # start nothing; compare what is there
    dry_run: bool = False

    def check(self) -> None:
        if self.where not in ("local", "slurm"):
            raise ConfigError(f"where={self.where}; use local or slurm")
        if self.at_once < 1:
            raise ConfigError(f"at_once={self.at_once} must be at least 1")
        if self.processes_per_node is not None and self.processes_per_node < 1:
            raise ConfigError(f"processes_per_node={self.processes_per_node} must be at least 1")
        if self.where == "slurm" and self.processes_per_node not in (None, 1):
            raise ConfigError(
                f"processes_per_node={self.processes_per_node} with where=slurm: a job of a sweep is one process; "
                "submit larger runs one by one with llama-launch slurm, then compare them: compare_only=true"
            )


def sweep(arguments: list[str]) -> int:
    """Run a sweep and compare its runs; return the greatest status of its jobs, 1 if one of them is not finished.

    The sweep's runs are those in `output` whose names begin with `name` and a hyphen.

    Raises:
        ConfigError: nothing is swept, or a setting is wrong.
    """
    own = SweepConfig.__dataclass_fields__
    mine = [argument for argument in arguments if argument.partition("=")[0] in own]
    others = [argument for argument in arguments if argument not in mine]
    config = compose.compose("sweep", SweepConfig, mine)
    refuse_secrets(others)
    if strange := [each for each in others if each.partition("=")[0] in LaunchConfig.__dataclass_fields__]:
        raise ConfigError(f"{strange[0]}: a sweep runs on this machine, or with where=slurm on one GPU a job")
    given = {argument.partition("=")[0] for argument in others}
    ready = [each for each in ready_made(config.sweep) if each.partition("=")[0] not in given]
    overrides = [*ready, *others]
    train = compose.compose("train", TrainConfig, first_job(overrides))
    files = Path(train.output) / f"{train.name}-multirun"  # of Hydra and submitit
    settings = ["--multirun", *overrides, f"hydra.sweep.dir={files}"]
    if config.where == "slurm":
        command = [sys.executable, "-m", "llama_train", *settings, *submitit(train.cluster.slurm, config.at_once)]
    else:
        count = processes_here(train, config.processes_per_node)
        command = [sys.executable, "-m", "launch.jobs", str(count), *settings]
    if config.dry_run:
        print(subprocess.list2cmdline(command))
        return 0
    status = 0
    if not config.compare_only:
        if config.where == "slurm":
            require_slurm()
        status = run_to_end(command)
    parent = Path(train.output)
    runs = sorted(path.parent for path in parent.glob(f"{_literal(train.name)}-*/config.yaml"))
    if status and not runs:
        raise RunError(f"the sweep ended with status {status} before one of its runs began")
    outcomes = compare(runs, parent / f"{train.name}-comparison.html", train.name)
    unfinished = sum(not outcome.finished for outcome in outcomes)
    if unfinished or status:
        logs = f"; what they said is in {files}" if config.where == "slurm" else ""
        ended = f"the sweep ended with status {status}, " if status else ""
        print(f"{ended}{unfinished} of {len(outcomes)} runs are not finished{logs}", file=sys.stderr)
    return status or (1 if unfinished else 0)


def ready_made(name: str | None) -> list[str]:
    """Return the settings of a file in configs/sweep.

    Raises:
        ConfigError: there is no such file.
    """
    if name is None:
        return []
    path = SWEEPS / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(each.stem for each in SWEEPS.glob("*.yaml")))
        raise ConfigError(f"sweep={name}; use one of {there}, or give the settings on the command line")
    return list(OmegaConf.load(path).overrides)


def submitit(settings: SlurmConfig, at_once: int) -> list[str]:
    """Return the settings of hydra-submitit-launcher for jobs of one process, from those of the cluster."""
    try:
        import hydra_plugins.hydra_submitit_launcher  # noqa: F401
    except ImportError as error:
        raise ConfigError("where=slurm needs hydra-submitit-launcher: pip install 'llama-train[sweep]'") from error
    values = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gpus_per_node": 1 if settings.gpus_per_node else None,
        "cpus_per_task": None
        if settings.cpus_per_node is None
        else max(settings.cpus_per_node // (settings.gpus_per_node or 1), 1),
        "array_parallelism": at_once,
        "timeout_min": minutes(settings.time) if settings.time else None,
    }
    given = [f"hydra.launcher.{name}={value}" for name, value in values.items() if value is not None]
    setup = ",".join(f"'{line}'" for line in settings.setup)
    return ["hydra/launcher=submitit_slurm", *given, *([f"hydra.launcher.setup=[{setup}]"] if setup else [])]


def minutes(time: str) -> int:
    """Return SLURM's time limit in minutes: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS (sbatch(1))."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, mins, *_ = [*parts, 0, 0]
        return int(days) * 1440 + hours * 60 + mins
    return parts[0] * 60 + parts[1] if len(parts) == 3 else parts[0]


def first_job(overrides: list[str]) -> list[str]:
    """Return the settings of the sweep's first job.

    Raises:
        ConfigError: an override does not parse, or nothing is swept.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    if "hydra/sweeper=optuna" in overrides and importlib.util.find_spec("optuna") is None:
        raise ConfigError("a search needs hydra-optuna-sweeper: pip install 'llama-train[sweep]'")
    searches = any(each.key_or_group == "hydra/sweeper" for each in parsed)
    for each in parsed:
        if isinstance(each.value(), IntervalSweep) and not searches:
            raise ConfigError(
                f"{each.key_or_group}: an interval has no end of values; add hydra/sweeper=optuna to search in it, or "
                "give values"
            )
    by_sweeper = any(each.key_or_group.startswith("hydra.sweeper.params") for each in parsed)
    if not by_sweeper and not any(each.is_sweep_override() for each in parsed):
        raise ConfigError("nothing is swept; give a setting several values: optimizer.learning_rate=1e-3,3e-3")
    return [
        f"{each.key_or_group}={_first(each)}" if each.is_sweep_override() else line
        for each, line in zip(parsed, overrides, strict=True)
        if not each.key_or_group.startswith("hydra")
    ]


def _first(override: Override) -> str:
    """Return the first value of a sweep: of an interval its lower end."""
    value = override.value()
    return str(value.start) if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
