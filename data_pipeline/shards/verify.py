"""Checks every block of every file, and that what they say about each other is true."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.shards.format import parse_index
from data_pipeline.shards.manifest import MANIFEST, ROOT, FileEntry, Manifest, ShardEntry, inside, read_manifest
from data_pipeline.shards.packs import PackSet
from data_pipeline.shards.reader import ShardSet, check_block, map_file, open_provenance, open_root
from llama_foundation.errors import DataError

Progress = Callable[[int, int], None]
"""Called with (bytes checked so far, bytes in all)."""


def verify(path: Path | str, progress: Progress | None = None) -> list[str]:
    """Check a shard directory, that of one source or a root, from the first byte to the last.

    It goes on after a problem, so that one pass finds them all.

    Returns:
        What is wrong, one sentence each, naming the file; empty if everything is as it was written.
    """
    path = Path(path)
    problems: list[str] = []
    sets: list[tuple[Path, Manifest]] = []
    for directory in _directories(path, problems):
        try:
            sets.append((directory, read_manifest(inside(directory, path))))
        except DataError as error:
            problems.append(str(error))
    total = sum(file.bytes for _, manifest in sets for shard in manifest.shards for file in shard.files.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    for directory, manifest in sets:
        for shard in manifest.shards:
            problems += _shard_problems(directory, manifest, shard, advance)
        problems += _pack_problems(directory)
    return list(dict.fromkeys(problems))


def _directories(path: Path, problems: list[str]) -> list[Path]:
    """The shard set directories below `path`; found on disk if `shards.json` cannot be trusted."""
    if (path / MANIFEST).exists():
        return [path]
    try:
        root = open_root(path)
        return [path / split / source for split in root.splits for source in root.sources(split)]
    except DataError as error:
        problems.append(str(error))
        return sorted(file.parent for file in path.glob(f"*/*/{MANIFEST}")) if (path / ROOT).exists() else []


def _shard_problems(
    directory: Path, manifest: Manifest, shard: ShardEntry, advance: Callable[[int], None]
) -> Iterator[str]:
    mapped: dict[str, memoryview] = {}
    for extension, file in shard.files.items():
        try:
            data = map_file(directory, file)
        except DataError as error:
            yield str(error)
            advance(file.bytes)
            continue
        damaged = list(_damaged_blocks(directory, manifest, file, data, advance))
        yield from damaged
        if not damaged:
            mapped[extension] = data
    try:
        if "idx" in mapped:
            index = parse_index(directory / shard.files["idx"].name, mapped["idx"], bin_bytes=shard.files["bin"].bytes)
            if index.documents != shard.documents:
                yield (
                    f"{directory / shard.files['idx'].name}: has {index.documents} documents, but the manifest says "
                    f"{shard.documents}"
                )
        if "provenance.parquet" in mapped:
            open_provenance(
                directory / shard.files["provenance.parquet"].name, mapped["provenance.parquet"], shard.documents
            )
    except DataError as error:
        yield str(error)


def _pack_problems(directory: Path) -> Iterator[str]:
    for place in sorted(directory.glob("packs-*")):
        length = place.name.removeprefix("packs-")
        try:
            if not length.isdecimal():
                raise DataError(f"{place}: is not named for a sequence length; remove it")
            PackSet(ShardSet(directory), int(length)).check()
        except DataError as error:
            yield str(error)


def _damaged_blocks(
    directory: Path, manifest: Manifest, file: FileEntry, data: memoryview, advance: Callable[[int], None]
) -> Iterator[str]:
    for start in range(0, file.bytes, manifest.block_bytes):
        stop = min(start + manifest.block_bytes, file.bytes)
        try:
            check_block(directory, file, data, start // manifest.block_bytes, manifest.block_bytes)
            if file.name.endswith(".bin"):
                _check_ids(directory / file.name, manifest, data, start, stop)
        except DataError as error:
            yield str(error)
        advance(stop - start)


def _check_ids(path: Path, manifest: Manifest, data: memoryview, start: int, stop: int) -> None:
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    first = -(-start // dtype.itemsize)
    ids = np.frombuffer(data, dtype, stop // dtype.itemsize - first, first * dtype.itemsize)
    if len(ids) and (ids.max() >= manifest.vocabulary_size or ids.min() < 0):
        raise DataError(
            f"{path}: a token id between bytes {start} and {stop} is outside the vocabulary of "
            f"{manifest.vocabulary_size}"
        )
