"""Files on this machine and in object stores: found by glob, opened for reading at any place.

A remote file is read in blocks of `BLOCK_BYTES`, each by a request of its own. So a
connection that drops costs one block: it is asked for again, with growing pauses, and after `ATTEMPTS` the run ends
with an error that says what to do.
"""

import contextlib
import glob
import io
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from llama_foundation.errors import ConfigError, DataError, RunError

BLOCK_BYTES = 4 * 1024 * 1024
ATTEMPTS = 6
FIRST_PAUSE = 0.5
"""Seconds; each pause is twice the one before, up to a quarter longer so that workers do not come back all at once."""

Result = TypeVar("Result")


def is_remote(path: str) -> bool:
    """Whether `path` is a URL such as s3://bucket/key rather than a file of this machine."""
    return "://" in path


def matches(pattern: str) -> list[str]:
    """Return the files that `pattern` names: itself where it is a file, else what it matches as a glob (`**` too).

    Raises:
        ConfigError: no file system is installed for the URL.
        RunError: the store does not answer.
    """
    if not is_remote(pattern):
        found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        return [os.path.normpath(path) for path in found]
    system, path = _file_system(pattern)
    scheme = pattern.split("://")[0]

    def look() -> list[str]:
        found = [path] if system.isfile(path) else system.glob(path)
        return [f"{scheme}://{each.removeprefix(f'{scheme}://')}" for each in found if system.isfile(each)]

    return _persistently(look, pattern)


def describe(path: str) -> tuple[int, int]:
    """Return (size in bytes, nanoseconds since 1970 of its last change or 0) of a file that can be opened.

    Raises:
        DataError: it is not there or may not be read.
    """
    try:
        if is_remote(path):
            system, key = _file_system(path)
            found = _persistently(lambda: system.info(key), path)
            modified = found.get("LastModified") or found.get("mtime") or found.get("updated")
            moment = modified.timestamp() if hasattr(modified, "timestamp") else modified
            return int(found["size"]), int(moment * 1_000_000_000) if isinstance(moment, int | float) else 0
        status = os.stat(path)
        with open(path, "rb"):
            pass
        return status.st_size, status.st_mtime_ns
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def open_file(path: str) -> io.BufferedReader:
    """Open a local or remote file for reading; both can seek."""
    return io.BufferedReader(_RemoteFile(path)) if is_remote(path) else open(path, "rb")


class _RemoteFile(io.RawIOBase):
    """A remote object by ranges of bytes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._system, self._key = _file_system(path)
        self._size = int(_persistently(lambda: self._system.info(self._key), path)["size"])
        self._position = 0
        self._held_from, self._held = 0, b""  # the last block

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        if not self._held_from <= start < self._held_from + len(self._held):
            end = min(start + max(len(buffer), BLOCK_BYTES), self._size)
            if start >= end:
                return 0
            self._held_from, self._held = start, self._fetch(start, end)
        offset = start - self._held_from
        data = self._held[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch(self, start: int, end: int) -> bytes:
        def ask() -> bytes:
            data = self._system.cat_file(self._key, start=start, end=end)
            if len(data) != end - start:
                raise OSError(f"{len(data)} bytes came instead of {end - start}")
            return data

        return _persistently(ask, f"{self._path} bytes {start} to {end}")


def _file_system(path: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        extra = ": pip install 'llama-train[s3]'" if path.startswith("s3") else f": {error}"
        raise ConfigError(f"{path}: the library for {path.split('://')[0]}:// is not installed{extra}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; give a path, or a URL of a store that fsspec knows") from error


def _persistently(ask: Callable[[], Result], what: str) -> Result:
    """Return ask(), asking again after failures that may pass.

    Raises:
        OSError: the object is not there or must not be read; that does not pass.
        RunError: it failed `ATTEMPTS` times.
    """
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # every store has its own kinds of error
            if attempt == ATTEMPTS - 1:
                raise RunError(
                    f"{what}: the store failed {ATTEMPTS} times, at last with {type(error).__name__}: {error}; "
                    "finished partitions are kept: run the same command again when it is back"
                ) from error
        time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(1, 1.25))
    raise AssertionError("the loop ends with a result or an error")


@contextlib.contextmanager
def opened_for_arrow(path: str):
    """Give Arrow what it reads fastest: the path of a local file, a file object of a remote one."""
    if is_remote(path):
        with open_file(path) as file:
            yield file
    else:
        yield path
