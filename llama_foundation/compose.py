"""The one way every command turns its Hydra configuration into a checked, typed object.

A command owns a dataclass (its schema) and an entry file `configs/<entry>.yaml` whose defaults list starts with
`<entry>_schema`. `main` composes the entry with the user's overrides, checks it as a whole, and calls the command.
Hydra's own flags (`--cfg job --resolve`, `--multirun`, `--info`, `--help`) go to Hydra.
"""

import difflib
import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llama_foundation.errors import ConfigError, UserError

_PACKAGED = Path(__file__).parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "configs"
"""Where the YAML files are: inside the installed wheel, or at the top of a checkout."""

Schema = TypeVar("Schema")


def compose(entry: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """Compose `configs/<entry>.yaml` with Hydra `overrides` and check it.

    Raises:
        ConfigError: an override does not parse, a key or a group member is unknown (the closest one is named),
            a value has the wrong type, or `schema.check()` refuses the whole.
    """
    _register(entry, schema)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=entry):
            composed = hydra.compose(entry, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, schema)) from error
    return to_object(composed, schema)


def to_object(composed: Any, schema: type[Schema]) -> Schema:
    """Turn a composed (or loaded) configuration into a checked instance of `schema`."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, schema)) from error
    assert isinstance(config, schema)
    if hasattr(config, "check"):
        config.check()
    return config


def main(entry: str, schema: type[Schema], command: Callable[[Schema], int | None]) -> int:
    """Run `command` on the configuration that the command line describes; return the exit status.

    User errors are printed without a traceback. In a sweep (`--multirun`) a configuration that has `name` gets the
    job's overrides appended to it, so that every job has its own stable run directory.
    """
    _register(entry, schema)
    arguments = sys.argv[1:]
    try:
        if not any(argument.startswith("-") for argument in arguments):
            return command(compose(entry, schema, arguments)) or 0
        return _through_hydra(entry, schema, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _through_hydra(entry: str, schema: type[Schema], command: Callable[[Schema], int | None]) -> int:
    status = 0

    @hydra.main(config_path=str(CONFIGS), config_name=entry, version_base="1.3")
    def job(composed: Any) -> None:
        nonlocal status
        config = to_object(composed, schema)
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN and hasattr(config, "name"):
            suffix = re.sub(r"[^A-Za-z0-9_.=,-]+", "-", hydra_config.job.override_dirname)
            config.name = f"{config.name}-{suffix}" if suffix else config.name
        status = max(status, command(config) or 0)

    job()
    return status


def dump(config: Any) -> str:
    """Return `config` as YAML, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def load(path: Path, schema: type[Schema]) -> Schema:
    """Read a configuration written by `dump`.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit `schema`.
    """
    try:
        return to_object(OmegaConf.load(path), schema)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration: {error}") from error


def fingerprint(config: Any) -> str:
    """Return the SHA-256 of the configuration's YAML, as hexadecimal digits."""
    return hashlib.sha256(dump(config).encode()).hexdigest()


def _register(entry: str, schema: type) -> None:
    ConfigStore.instance().store(name=f"{entry}_schema", node=schema)


def _keys(schema: Any, prefix: str = "") -> list[str]:
    """Every dotted key that `schema` knows, nested dataclasses included."""
    keys = []
    for field in fields(schema):
        keys.append(prefix + field.name)
        if is_dataclass(field.type):
            keys += _keys(field.type, f"{prefix}{field.name}.")
    return keys


def _explain(error: Exception, schema: type) -> str:
    """Say in one paragraph what is wrong and what to write instead."""
    text = str(error)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        key = getattr(error, "full_key", None) or unknown.group(1)
        override = re.search(r"Could not override '([^']+)'", text)
        key = override.group(1) if override else key
        close = difflib.get_close_matches(key, _keys(schema), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{key} is not a setting{hint}"
    missing = re.search(r"Could not find '([^'/]+)/([^']+)'\s*Available options in '([^']+)':(.*)", text, re.S)
    if missing:
        group, member, _, options = missing.groups()
        names = options.split()
        close = difflib.get_close_matches(member, names, n=1, cutoff=0.4)
        hint = f"did you mean {group}={close[0]}? " if close else ""
        return f"{group}={member} does not exist; {hint}Known: {', '.join(names)}"
    key = getattr(error, "full_key", None)
    first = text.split("\n")[0].strip()
    return f"{key}: {first}" if key and key not in first else first
