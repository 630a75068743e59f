"""What Hydra and OmegaConf refuse, in words a user can act on: the setting, its value, what is allowed, the fix."""

import difflib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from yaml import YAMLError


def explain(error: Exception, schema: type, overrides: list[str] | None = None, configs: Path | None = None) -> str:
    """Return one message for `error`, which Hydra or OmegaConf raised while composing a `schema`.

    Args:
        overrides: what the user wrote on the command line.
        configs: the folder of the YAML files.
    """
    if isinstance(error, YAMLError):
        return f"a file under configs/ is not YAML: {error}"
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text, schema)
    ambiguous = re.search(r"Ambiguous value for argument '(.*)'\n", text)
    if ambiguous:
        return _several_values(ambiguous[1].lstrip("+"), schema)
    for override in overrides or []:
        group, _, member = override.partition("=")
        if not group:
            return _unreadable(override, text, schema)
        if configs and "override must be a string" in text and (configs / group).is_dir():
            return _no_member(group, member, sorted(path.stem for path in (configs / group).glob("*.yaml")))
    member = re.search(r"Could not find '([^']+)/([^'/]+)'\s*Available options in '[^']+':((?:\n\t\S+)*)", text)
    if member:
        return _no_member(member[1], member[2], member[3].split())
    misplaced = re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text)
    if misplaced:
        return f"{misplaced[1]}: this command does not choose from configs/{misplaced[1]}/"
    return _location(text) + _about_setting(str(error.__cause__ or error), text, schema)


def optional_section(kind: Any) -> bool:
    """Is `kind` a dataclass or null?"""
    return NoneType in get_args(kind) and is_dataclass(_without_null(kind))


def _about_setting(detail: str, text: str, schema: type) -> str:
    """Explain an unknown key or a bad value from OmegaConf's message."""
    override = re.search(r"Error merging override (.*)", text)
    override_key, _, override_value = override[1].lstrip("+~").partition("=") if override else ("", "", "")
    lines = detail.split("\n")
    first = next((line for line in lines if line and not line.startswith("In '")), lines[0])
    found = re.search(r"full_key: (\S+)", detail)
    key = found[1] if found else override_key
    if override_key and not key.startswith(override_key.split(".")[0]):
        key = f"{override_key}[].{key}"  # inside a list OmegaConf does not know where it is

    if re.search(r"Key '.*' (?:is )?not in ", detail):
        return _unknown(key, schema)
    if not key:
        return f"this does not fit the settings of the command: {first}"
    kind = _kind(schema, key)
    if kind is None:
        return f"{key}: {first}" if key not in first else first
    value = re.search(r"[Vv]alue:? '?(.*?)'?(?: of type| is not a|, expected|$)", first)
    shown = "null" if "not Optional" in first else override_value if key == override_key else value and value[1]
    if "nterpolation" in first:
        return f"{key}: {first}"
    allowed = _allowed(kind, key)
    return f"{key}={shown} must be {allowed}" if shown else f"{key} must be {allowed}: {first}"


def _unknown(key: str, schema: type) -> str:
    known = list(_keys(schema))
    key = re.sub(r"\[\d*\]", "[]", key)
    section, _, name = key.rpartition(".")
    siblings = {sibling.rpartition(".")[2]: sibling for sibling in known if sibling.rpartition(".")[0] == section}
    close = [siblings[match] for match in difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)]
    if not close and not siblings:  # the section itself is misspelled
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # a setting of another section
        close = [candidate for candidate in known if candidate.rpartition(".")[2] == name][:1]
    if close:
        return f"{key} is not a setting; did you mean {close[0]}?"
    if not siblings:
        return f"{key} is not a setting; --cfg job prints all of them"
    return f"{key} is not a setting; the settings of {section or 'this command'} are {', '.join(siblings)}"


def _no_member(group: str, member: str, known: list[str]) -> str:
    close = difflib.get_close_matches(member, known, n=1, cutoff=0.4)
    hint = f"did you mean {group}={close[0]}? " if close else ""
    return f"{group}={member} does not exist; {hint}Known: {', '.join(known)}"


def _unreadable(override: str, text: str, schema: type) -> str:
    override = override.lstrip("+")
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is not a setting; write it as key=value"
    if not key:
        return f"{override!r} has no name before the equals sign; write it as key=value"
    if value[:1] in ("[", "{") and _without_null(_kind(schema, key)) is not str:
        reason = text.split("\n")[0]
        return f"{override} cannot be read: {reason}; close every bracket and quote special characters inside"
    return f"{override} cannot be read because of its special characters; quote the value: {quoted(key, value)}"


def _several_values(override: str, schema: type) -> str:
    key, _, value = override.partition("=")
    kind = _kind(schema, key)
    if get_origin(_without_null(kind)) is list:
        return f"{override} must be a list in brackets: '{key}=[{value}]'"
    if _without_null(kind) is str:
        return f"{override} reads as several values; quote it: {quoted(key, value)}, or try each with --multirun"
    return f"{override} has several values; give one, or run one job for each with --multirun"


def quoted(key: str, value: str) -> str:
    """Return `key=value` as it has to be typed into a shell, so that Hydra takes the whole value as text."""
    for mark in "'\"":
        candidate = f"{key}={mark}{value}{mark}"
        if mark not in value and _reads_as(candidate, value):
            break
    else:
        candidate = f"{key}='" + value.replace("'", "\\'") + "'"
    if re.search(r"[$`\\!]", candidate):
        return shlex.quote(candidate)
    return '"' + candidate.replace('"', '\\"') + '"'


def _reads_as(override: str, value: str) -> bool:
    try:
        return OverridesParser.create().parse_override(override).value() == value
    except HydraException:
        return False


def _location(text: str) -> str:
    """The YAML file that Hydra was reading, if the error is in one."""
    found = re.match(r"In '([^']+)': \w+ raised while composing config", text)
    return f"configs/{found[1]}.yaml: " if found else ""


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key that `schema` knows, nested sections and lists of sections included."""
    hints = get_type_hints(schema)
    for column in fields(schema):
        yield prefix + column.name
        kind = _without_null(hints[column.name])
        if is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{column.name}.")
        elif get_origin(kind) is list and is_dataclass(get_args(kind)[0]):
            yield from _keys(get_args(kind)[0], f"{prefix}{column.name}[].")


def _kind(schema: type, key: str) -> Any:
    """The type that `schema` gives to a dotted key, or None."""
    kind: Any = schema
    for part in re.findall(r"[^.\[\]]+|\[\d*\]", key):
        kind = _without_null(kind)
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif get_origin(kind) is list:
            kind = get_args(kind)[0]
        else:
            return None
    return kind


def _allowed(kind: Any, key: str) -> str:
    """Say in words which values a type takes."""
    name = key.rpartition(".")[2]
    null = " or null" if NoneType in get_args(kind) else ""
    kind = _without_null(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(member.name for member in kind)}{null}"
    if is_dataclass(kind):
        return f"a section with settings {', '.join(column.name for column in fields(kind))}{null}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in words:
        return words[kind] + null
    if get_origin(kind) is list:
        return f"a list, as in '{name}=[a,b]'{null}"
    if get_origin(kind) is dict:
        return f"a mapping, as in '{name}={{a: 1, b: 2}}'{null}"
    return str(kind)


def _without_null(kind: Any) -> Any:
    """X for `X | None`."""
    if get_origin(kind) in (Union, UnionType):
        rest = [part for part in get_args(kind) if part is not NoneType]
        return rest[0] if len(rest) == 1 else kind
    return kind
