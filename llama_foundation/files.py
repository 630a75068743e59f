"""Files that become visible only when they are complete.

Write to a hidden neighbour, flush it to disk, then rename: a reader never sees half of anything, also after a
power cut. Directories are published the same way.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

_PROCESS = os.urandom(4).hex()
"""Process ids are unique on one machine only, and directories are shared by several."""

BLOCK_BYTES = 16 * 1024 * 1024
"""Checksums are kept per block of this many bytes, so that reading one block verifies one block."""


def not_for_everybody_to_write() -> None:
    """From now on nothing that this process or its children make can be written by every user, whatever the umask."""
    os.umask(os.umask(0o022) | 0o002)


def checksum(data: bytes | memoryview) -> str:
    """Return the 128-bit xxh3 hash of `data` as 32 hexadecimal digits; it finds accidents, not attackers."""
    return xxhash.xxh3_128_hexdigest(data)


def checksum_file(path: Path) -> str:
    """Return the `checksum` of a file's content, read a few megabytes at a time."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            hasher.update(piece)
    return hasher.hexdigest()


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def publish(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden temporary file for writing; it is renamed to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_PROCESS}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)  # a failed write does not say of what
        raise
    finally:
        temporary.unlink(missing_ok=True)


def publish_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with publish(path) as file:
        file.write(text.encode("utf-8"))


def publish_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    publish_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def publish_directory(temporary: Path, final: Path) -> None:
    """Rename a finished directory into place; every file inside must already be flushed."""
    fsync_directory(temporary)
    os.rename(temporary, final)
    fsync_directory(final.parent)
