"""The one way every command turns its Hydra configuration into a checked, typed object.

A command owns a dataclass (its schema) and an entry file `configs/<entry>.yaml` (`configs/commands/<entry>.yaml` where
it chooses from no group), whose defaults list starts with `<entry>_schema`. `main` composes the entry with the user's
overrides, checks it as a whole, and calls the command.
Hydra's own flags (`--cfg job --resolve`, `--multirun`, `--info`, `--help`) go to Hydra.
"""

import contextlib
import copy
import errno
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, field, fields, is_dataclass, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from llama_foundation.errors import ConfigError, RunError, UserError
from llama_foundation.explain import explain, optional_section

_PACKAGED = Path(__file__).parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "configs"
"""Where the YAML files are: inside the installed wheel, or at the top of a checkout."""

Schema = TypeVar("Schema")
_LONGEST_SUFFIX = 150  # characters; file systems stop at 255 for a whole file name
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)

_HYDRA_SETTINGS = {
    "hydra.run.dir": ".",
    "hydra.output_subdir": "null",
    "hydra.sweep.dir": "multirun",
    "hydra.sweep.subdir": ".",
    # "none" leaves Python's logging alone; "disabled" would silence our own warnings too
    "hydra/job_logging": "none",
    "hydra/hydra_logging": "none",
}


def compose(entry: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """Compose `configs/<entry>.yaml` with Hydra `overrides` and check it.

    Raises:
        ConfigError: an override does not parse, a key or a group member is unknown (the closest one is named),
            a value has the wrong type or is missing, or `schema.check()` refuses the whole.
    """
    return to_object(_compose(entry, schema, overrides), schema)


def to_object(composed: Any, schema: type[Schema]) -> Schema:
    """Turn a composed (or loaded) configuration into a checked instance of `schema`."""
    typed = _typed(composed, schema)
    try:
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ConfigError(
                f"{', '.join(missing)}: not set; give {'each' if len(missing) > 1 else 'it'} on the command line "
                f"({' '.join(f'{key}=...' for key in missing)}) or in a file under configs/"
            )
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema)) from error
    assert isinstance(config, schema)
    if hasattr(config, "check"):
        config.check()
    return config


def main(
    entry: str,
    schema: type[Schema],
    command: Callable[[Schema], int | None],
    objective: Callable[[Schema], float | None] | None = None,
) -> int:
    """Run `command` on the configuration that the command line describes; return the exit status.

    User errors are printed without a traceback. In a sweep (`--multirun`) a configuration that has `name` gets the
    job's swept overrides appended to it, so that every job has its own stable run directory.

    Args:
        objective: what a sweeper that searches shall minimise: the value of a job of a sweep that ended with status 0,
            None if it has none.
    """
    arguments = sys.argv[1:]
    try:
        if any(argument.startswith("--experimental-rerun") for argument in arguments):
            raise ConfigError("--experimental-rerun loads a pickle, which can run code; give the overrides instead")
        if not any(argument.startswith("-") for argument in arguments):
            return _called(command, compose(entry, schema, arguments))
        return _through_hydra(entry, schema, command, arguments, objective)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # what shells report for a command ended by ctrl-c


def dump(config: Any) -> str:
    """Return `config` as YAML that `load` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(config)))


def load(path: Path, schema: type[Schema]) -> Schema:
    """Read a configuration written by `dump`.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit `schema`.
    """
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ValueError("it is not a mapping of settings")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration: {error}") from error
    try:
        return to_object(loaded, schema)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def fingerprint(config: Any) -> str:
    """Return the SHA-256 of the configuration's YAML, as hexadecimal digits."""
    return hashlib.sha256(dump(config).encode()).hexdigest()


def _home(entry: str) -> Path:
    """Where the entry's file is.

    Entries that choose from no group have a directory without groups: `checkpoint=DIR` would otherwise ask Hydra for
    a member of `configs/checkpoint/`.
    """
    return CONFIGS if (CONFIGS / f"{entry}.yaml").is_file() else CONFIGS / "commands"


def _compose(entry: str, schema: type, overrides: list[str]) -> Any:
    _register(entry, schema)
    GlobalHydra.instance().clear()
    home = _home(entry)
    with _explained(schema, overrides, home):
        try:
            with hydra.initialize_config_dir(str(home), version_base="1.3", job_name=entry):
                return hydra.compose(entry, overrides=[_forced(override, home) for override in overrides])
        finally:
            GlobalHydra.instance().clear()


def _typed(composed: Any, schema: type) -> Any:
    """Merge into the schema from plain values, because what Hydra composed may hold keys that the schema does not."""
    try:
        plain = OmegaConf.to_container(composed, resolve=False)
        return OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(plain))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema)) from error
    except OverflowError as error:
        raise ConfigError(f"a whole number is too large for a setting that takes fractions: {error}") from error


def _called(command: Callable[[Schema], int | None], config: Schema) -> int:
    """Return the exit status of `command(config)`; a disk that takes no more is the user's to mend."""
    try:
        return command(config) or 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunError(
            f"{error.filename or 'a file'} cannot be written: {error.strerror}. What was finished before is kept: make "
            "room, and run the same command again"
        ) from error


def _through_hydra(
    entry: str,
    schema: type[Schema],
    command: Callable[[Schema], int | None],
    arguments: list[str],
    objective: Callable[[Schema], float | None] | None,
) -> int:
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    sweeping = any(argument in ("-m", "--multirun") for argument in arguments)
    home = _home(entry)
    swept = _swept_keys(schema, overrides, home) if sweeping else set()
    if not sweeping:
        _typed(_compose(entry, schema, overrides), schema)
    _register(entry, schema)
    status = 0
    crash: list[Exception] = []
    process = os.getpid()

    @hydra.main(config_path=str(home), config_name=entry, version_base="1.3")
    def job(composed: Any) -> float | None:
        nonlocal status
        if crash:
            return None
        label, sweeping = "", HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            if sweeping:
                print(f"job {HydraConfig.get().job.num}: {_job_label(swept | _swept_by_sweeper())}", file=sys.stderr)
            config = to_object(composed, schema)
            if sweeping:
                label = _job_label(swept | _swept_by_sweeper())
                if hasattr(config, "name"):
                    config.name = f"{config.name}-{label}" if label else config.name
            own = _called(command, config)
            status = max(status, own)
            if own and os.getpid() != process:
                raise RunError(f"ended with status {own}")
            return objective(config) if objective is not None and own == 0 else None
        except UserError as error:
            print(f"error: {label and label + ': '}{error}", file=sys.stderr)
            status = max(status, error.exit_code)
            if os.getpid() != process:  # a job on SLURM: of this status the sweep hears only so
                raise
        except Exception as error:
            if os.getpid() != process:  # a job on SLURM: what it appends here nobody sees
                traceback.print_exc()
                raise RuntimeError(f"{label}: {type(error).__name__}: {error}") from error
            crash.append(error)  # raised below: in here, Hydra would take some of them for its own
        return None

    before = sys.argv
    sys.argv = [before[0], *_with_hydra_settings([_forced(argument, home) for argument in arguments], overrides)]
    try:
        with _explained(schema, overrides, home), _hydra_raises():
            job()
    finally:
        sys.argv = before
    if crash:
        raise crash[0]
    return status


@contextlib.contextmanager
def _explained(schema: type, overrides: list[str], home: Path) -> Iterator[None]:
    try:
        yield
    except _HYDRA_ERRORS as error:
        if str(error) == "No trials are completed yet.":  # Optuna's, which has no best one
            raise RunError("no job of the search has a result; each has said why") from error
        raise ConfigError(explain(error, schema, overrides, home)) from error


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise what goes wrong instead of printing it and leaving."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _forced(override: str, home: Path) -> str:
    """Write `key=value` as `++key=value` where it sets a value.

    Hydra refuses a plain override below an empty mapping (`data.sources.web=1`) before the schema has its say, and
    lets `+typo=1` through; so all values go in, and `_typed` decides, in one place and with one kind of message.
    """
    key = override.partition("=")[0]
    is_value = "=" in override and re.fullmatch(r"[A-Za-z_][\w.\-$]*", key) and not key.startswith("hydra.")
    return f"++{override}" if is_value and not (home / key).is_dir() else override


def _with_hydra_settings(arguments: list[str], overrides: list[str]) -> list[str]:
    """Keep Hydra from making directories and log files of its own, unless the user wants them.

    Its argument parser takes overrides only in one piece, before or after the flags: ours go next to the user's.
    """
    given = {override.partition("=")[0] for override in overrides}
    ours = [f"{key}={value}" for key, value in _HYDRA_SETTINGS.items() if key not in given]
    places = [number for number, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-")]
    end = places[-1] + 1 if places else len(arguments)
    return [*arguments[:end], *ours, *arguments[end:]]


def _swept_keys(schema: type, overrides: list[str], home: Path) -> set[str]:
    with _explained(schema, overrides, home):
        parsed = OverridesParser.create().parse_overrides(overrides)
    return {override.key_or_group for override in parsed if override.is_sweep_override()}


def _swept_by_sweeper() -> set[str]:
    """Return the keys that the sweeper itself sweeps: hydra.sweeper.params={key: values}."""
    params = HydraConfig.get().sweeper.get("params") or {}
    parsed = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    return {override.key_or_group for override in parsed if override.is_sweep_override()}


def _job_label(swept: set[str]) -> str:
    """This job's own part of the sweep, as a piece of a file name."""
    parts = [override.lstrip("+") for override in HydraConfig.get().overrides.task]
    label = ",".join(part for part in parts if part.partition("=")[0] in swept)
    label = re.sub(r"[^A-Za-z0-9_.=,-]+", "-", label)
    if len(label) > _LONGEST_SUFFIX:
        label = f"{label[:_LONGEST_SUFFIX]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return label


def _register(entry: str, schema: type) -> None:
    ConfigStore.instance().store(name=f"{entry}_schema", node=_composable(schema()))


def _composable(section: Any) -> Any:
    """Return `section` with its optional sections untyped: nothing can be merged into a typed one that is null."""
    hints = get_type_hints(type(section))
    columns: list[tuple[str, Any, Any]] = []
    for column in fields(section):
        kind, value = hints[column.name], getattr(section, column.name)
        if optional_section(kind):
            kind, value = Any, asdict(value) if is_dataclass(value) else value
        elif is_dataclass(value):
            value = _composable(value)
            kind = type(value)
        columns.append((column.name, kind, field(default_factory=lambda value=value: copy.deepcopy(value))))
    return make_dataclass(type(section).__name__, columns)()


def _plain(value: Any) -> Any:
    """Turn a configuration into what YAML can hold; text that would read as an interpolation is escaped."""
    if is_dataclass(value):
        return {column.name: _plain(getattr(value, column.name)) for column in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value
