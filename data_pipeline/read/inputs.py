"""Which files there are to read, and the source that each belongs to."""

import json
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_pipeline.config import InputConfig
from data_pipeline.read import hub, storage
from data_pipeline.read.pieces import InputFile
from data_pipeline.read.rows import BadRecordError, source_name
from llama_foundation.errors import ConfigError, DataError

COMPRESSIONS = (".gz", ".zst")
SUFFIXES = {
    ".jsonl": COMPRESSIONS,
    ".ndjson": COMPRESSIONS,
    ".parquet": (),
    ".arrow": (),
    ".warc": (".gz",),
    ".wet": (".gz",),
    ".wat": (".gz",),
}
"""Suffix of a format -> the compressions that may stand behind it."""

_GLOB_CHARACTERS = frozenset("*?[")


def find(settings: InputConfig) -> list[InputFile]:
    """Expand globs, lists and saved data sets; every file once, sorted by path.

    Raises:
        ConfigError: a source name is too long.
        DataError: a pattern matches nothing, or a file has an unknown suffix or cannot be read.
    """
    patterns = [("input.paths", pattern) for pattern in settings.paths]
    if settings.list:
        patterns += [(f"input.list={settings.list}", line) for line in _listed(settings.list)]
    paths = {path for origin, pattern in patterns for path in _expand(origin, pattern)}
    published = {path for pattern in settings.published_paths for path in _expand("input.published_paths", pattern)}
    files = [InputFile(path, "", *storage.describe(path), path in published) for path in sorted(paths | published)]
    sources = dict.fromkeys(paths | published, settings.source) if settings.source else _sources(files)
    files = [replace(file, source=_checked(sources[file.path])) for file in files]
    if settings.dataset.name:
        source = _checked(settings.source or settings.dataset.name)
        files += [InputFile(path, source, 0, 0) for path in hub.shards(settings.dataset)]
    return files


def split_suffix(path: str) -> tuple[str, str, str]:
    """Return (name without suffixes, suffix of the format, suffix of the compression or nothing)."""
    stem, suffix = os.path.splitext(PurePosixPath(path).name)
    if suffix not in COMPRESSIONS:
        return stem, suffix, ""
    stem, inner = os.path.splitext(stem)
    return stem, inner, suffix


def _listed(path: str) -> list[str]:
    try:
        with storage.open_file(path) as file:
            lines = [line.strip() for line in file.read().decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"input.list={path} cannot be read: {error}; give a text file, one path per line") from error
    if not any(lines):
        raise DataError(f"input.list={path} names no file; write one path or glob per line")
    return [line for line in lines if line]


def _expand(origin: str, pattern: str) -> list[str]:
    files = []
    folder = None
    for path in storage.matches(pattern):
        if storage.is_remote(path) or os.path.isfile(path):
            _check_suffix(path)
            files.append(path)
        elif arrow := _saved_set(path):
            files += arrow
        else:
            folder = path
    if not files:
        hint = ""
        if folder == os.path.normpath(pattern):
            hint = f"; it is a directory: write {pattern.rstrip('/')}/**/*.jsonl"
        elif not storage.is_remote(pattern) and not _GLOB_CHARACTERS & set(pattern):
            hint = "; there is no such file"
        raise DataError(f"{origin}: no file matches {pattern}{hint} (from {os.getcwd()})")
    return files


def _saved_set(folder: str) -> list[str]:
    """Return the Arrow files of a data set that `save_to_disk` of datasets wrote, nothing for another folder."""
    if (Path(folder) / "dataset_dict.json").exists():
        splits = sorted(each.parent.name for each in Path(folder).glob("*/state.json"))
        raise DataError(
            f"{folder} is a saved data set with the splits {', '.join(splits)}; name those to read: {folder}/SPLIT"
        )
    state = Path(folder) / "state.json"
    if not state.exists():
        return []
    try:
        names = [each["filename"] for each in json.loads(state.read_bytes())["_data_files"]]
        for name in names:
            if os.path.basename(name) != name or not name.endswith(".arrow"):
                raise ValueError(f"{name!r} is no Arrow file beside it")
        return [os.path.normpath(Path(folder) / name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{state} is not what datasets writes: {error}; save the data set again") from error


def _check_suffix(path: str) -> None:
    _, suffix, compression = split_suffix(path)
    if suffix not in SUFFIXES or (compression and compression not in SUFFIXES[suffix]):
        given = f"{suffix or 'a file without a suffix'}{f' inside {compression}' if compression else ''}"
        known = "; ".join(
            f"{each} ({', '.join(('plain', *behind))})" if behind else each for each, behind in SUFFIXES.items()
        )
        raise DataError(f"{path}: cannot read {given}; known: {known}")


def _sources(files: list[InputFile]) -> dict[str, str]:
    """Return path -> source: the file's name without suffixes, with as many folders in front as tell it from others.

    A data set saved on disk is one source, named after its folder.
    """
    stems: dict[str, tuple[str, ...]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        stem, suffix, _ = split_suffix(file.path)
        stems[file.path] = path.parent.parts if suffix == ".arrow" else (*path.parent.parts, stem)
    names = {}
    for path, parts in stems.items():
        # the same folder and name with another suffix is the same source
        others = {each for each in stems.values() if each != parts}
        depth = 1
        while any(each[-depth:] == parts[-depth:] for each in others) and depth < len(parts):
            depth += 1
        names[path] = "/".join(parts[-depth:]).replace("//", "/")
    return names


def _checked(source: str) -> str:
    try:
        return source_name(source)
    except BadRecordError as error:
        raise ConfigError(f"input.source={source} is too long for a directory name; set a shorter one") from error
