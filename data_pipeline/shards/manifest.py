"""The two JSON files of a shard directory: `manifest.json` of one source, `shards.json` of the whole.

Both carry a checksum of themselves, so that a flipped bit in a count is found as surely as one in a token.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shards.format import token_dtype
from llama_foundation.errors import DataError
from llama_foundation.files import BLOCK_BYTES, checksum, checksum_file, publish_json

MANIFEST = "manifest.json"
ROOT = "shards.json"
VERSION = 1
EXTENSIONS = ("bin", "idx", "provenance.parquet")
_DIGEST_BYTES = 16  # xxh3-128
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class FileEntry:
    """One file of a shard: `blocks` holds a 16-byte digest for every `block_bytes` of it, one after the other."""

    name: str
    bytes: int
    blocks: bytes

    def digest(self, block: int) -> str:
        return self.blocks[block * _DIGEST_BYTES : (block + 1) * _DIGEST_BYTES].hex()


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its counts and its files by extension."""

    documents: int
    tokens: int
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    tokenizer_fingerprint: str
    vocabulary_size: int
    dtype: str
    documents: int
    tokens: int
    shards: tuple[ShardEntry, ...]
    block_bytes: int = BLOCK_BYTES


@dataclass(frozen=True)
class ShardTokenizer:
    """What encoded the shards; `file` is relative to the root."""

    file: str
    fingerprint: str
    vocabulary_size: int
    bos_id: int
    eos_id: int


@dataclass(frozen=True)
class SourceEntry:
    """One source of one split in `shards.json`; `manifest` is the checksum of its manifest file."""

    documents: int
    tokens: int
    manifest: str


def check_name(what: str, name: str) -> str:
    """Return `name` if it can be a file or directory name, and nothing but that.

    Raises:
        DataError: it holds a separator, starts with a dot, or has characters outside letters, digits and `._+-`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(
            f"{what}: {name!r} is not a plain name; use letters, digits and ._+-, starting with a letter or a digit"
        )
    return name


def inside(path: Path, directory: Path) -> Path:
    """Return `path` if it lies inside `directory` once symbolic links are followed.

    Raises:
        DataError: it does not.
    """
    real, base = os.path.realpath(path), os.path.realpath(directory)
    if real != base and not real.startswith(base + os.sep):
        raise DataError(f"{path}: leads out of {directory} to {real}; put the file itself there")
    return path


def publish_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write `value` and a checksum of it to `path`."""
    publish_json(path, {**value, "checksum": _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `publish_sealed` wrote.

    Raises:
        DataError: missing, not JSON, of another version, or changed since it was written.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; give the output directory of a finished llama-data run") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); it is damaged, make the shards again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, not an object; it is damaged, make the shards again")
    if value.get("version") != VERSION:
        raise DataError(f"{path}: version {value.get('version')!r} is not known; only {VERSION} is")
    sealed = value.pop("checksum", None)
    if sealed != _seal(value):
        raise DataError(f"{path}: does not match its own checksum; it was changed or damaged, make the shards again")
    return value


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `directory/manifest.json`."""
    shards = [
        {
            "documents": shard.documents,
            "tokens": shard.tokens,
            "files": {extension: file_to_json(file) for extension, file in shard.files.items()},
        }
        for shard in manifest.shards
    ]
    publish_sealed(
        directory / MANIFEST,
        {
            "version": VERSION,
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "vocabulary_size": manifest.vocabulary_size,
            "dtype": manifest.dtype,
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "block_bytes": manifest.block_bytes,
            "shards": shards,
        },
    )


def read_manifest(directory: Path) -> Manifest:
    """Read and check `directory/manifest.json`; the files it names are not looked at.

    Raises:
        DataError: missing, damaged, contradicting itself, or naming files outside `directory`.
    """
    path = directory / MANIFEST
    value = read_sealed(path)
    try:
        manifest = Manifest(
            tokenizer_fingerprint=str(value["tokenizer_fingerprint"]),
            vocabulary_size=checked_count(path, "vocabulary_size", value["vocabulary_size"], least=1),
            dtype=str(value["dtype"]),
            documents=checked_count(path, "documents", value["documents"]),
            tokens=checked_count(path, "tokens", value["tokens"]),
            shards=tuple(_shard(path, shard) for shard in value["shards"]),
            block_bytes=checked_count(path, "block_bytes", value["block_bytes"], least=1),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: is not a manifest ({type(error).__name__}: {error}); make the shards again"
        ) from error
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Manifest) -> None:
    dtype = token_dtype(manifest.vocabulary_size)
    if manifest.dtype != dtype.name:
        raise DataError(
            f"{path}: dtype {manifest.dtype!r} does not fit vocabulary_size={manifest.vocabulary_size}, "
            f"which is stored as {dtype.name}"
        )
    for name in ("documents", "tokens"):
        total = sum(getattr(shard, name) for shard in manifest.shards)
        if total != getattr(manifest, name):
            raise DataError(f"{path}: says {getattr(manifest, name)} {name}, but its shards have {total}")
    for shard in manifest.shards:
        binary = shard.files["bin"]
        if binary.bytes != shard.tokens * dtype.itemsize:
            raise DataError(
                f"{path}: {binary.name} has {binary.bytes} bytes, but its {shard.tokens} tokens take "
                f"{shard.tokens * dtype.itemsize}"
            )
        for file in shard.files.values():
            check_digests(path, file, manifest.block_bytes)


def _shard(path: Path, value: dict[str, Any]) -> ShardEntry:
    return ShardEntry(
        documents=checked_count(path, "documents of a shard", value["documents"], least=1),
        tokens=checked_count(path, "tokens of a shard", value["tokens"], least=1),
        files={extension: file_from_json(path, value["files"][extension], extension) for extension in EXTENSIONS},
    )


def file_to_json(file: FileEntry) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    digests = [file.digest(block) for block in range(len(file.blocks) // _DIGEST_BYTES)]
    return {"name": file.name, "bytes": file.bytes, "blocks": digests}


def file_from_json(path: Path, value: dict[str, Any], extension: str) -> FileEntry:
    """Read back what `file_to_json` gave; `path` is the manifest that says so.

    Raises:
        DataError: its name is not plain or does not end with the extension, or its size is not one.
    """
    name = check_name(f"{path}: file name", value["name"])
    if not name.endswith(f".{extension}"):
        raise DataError(f"{path}: {name!r} does not end with .{extension}")
    size = checked_count(path, f"bytes of {name}", value["bytes"], least=1)
    return FileEntry(name, size, bytes.fromhex("".join(value["blocks"])))


def check_digests(path: Path, file: FileEntry, block_bytes: int) -> None:
    """Check that a manifest has a checksum for every block of a file.

    Raises:
        DataError: it does not.
    """
    blocks = -(-file.bytes // block_bytes)
    if len(file.blocks) != blocks * _DIGEST_BYTES:
        raise DataError(f"{path}: {file.name} has {blocks} blocks, but not as many checksums")


def checked_count(path: Path, name: str, value: Any, least: int = 0) -> int:
    """Return `value` if it is a whole number from `least` to below 2**63.

    Raises:
        DataError: it is not.
    """
    if type(value) is not int or not least <= value < 2**63:
        raise DataError(f"{path}: {name} is {value!r}, not a whole number of at least {least}")
    return value


def write_shards_json(directory: Path, tokenizer: ShardTokenizer, splits: dict[str, dict[str, SourceEntry]]) -> None:
    """Write `directory/shards.json`."""
    publish_sealed(
        directory / ROOT,
        {
            "version": VERSION,
            "tokenizer": vars(tokenizer),
            "splits": {
                split: {source: vars(entry) for source, entry in sources.items()} for split, sources in splits.items()
            },
        },
    )


def read_shards_json(directory: Path) -> tuple[ShardTokenizer, dict[str, dict[str, SourceEntry]]]:
    """Read and check `directory/shards.json`; the manifests are not looked at.

    Raises:
        DataError: missing, damaged, or naming directories outside `directory`.
    """
    path = directory / ROOT
    value = read_sealed(path)
    try:
        tokenizer = ShardTokenizer(**value["tokenizer"])
        for name in ("vocabulary_size", "bos_id", "eos_id"):
            checked_count(path, f"tokenizer.{name}", getattr(tokenizer, name))
        for name in ("file", "fingerprint"):
            if not isinstance(getattr(tokenizer, name), str):
                raise DataError(f"{path}: tokenizer.{name} is {getattr(tokenizer, name)!r}, not a text")
        splits = {
            check_name(f"{path}: split", split): {
                check_name(f"{path}: source", source): SourceEntry(**entry) for source, entry in sources.items()
            }
            for split, sources in value["splits"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not a list of shards ({type(error).__name__}: {error})") from error
    return tokenizer, splits


def file_checksum(path: Path) -> str:
    """Return the checksum of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return checksum_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _seal(value: dict[str, Any]) -> str:
    return checksum(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
