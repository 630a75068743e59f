"""Writing checkpoints: one file per rank, then the index, then a rename.

    DIRECTORY/step-00000100/rank-00000.bin   the chunks this rank owns: little-endian, each 64-byte aligned
                            tokenizer/...    small files, copied
                            index.json       written last

Until the rename the directory is `.step-00000100.partial`, which no reader looks at.
"""

import copy
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llama_foundation.errors import CheckpointError
from llama_foundation.files import BLOCK_BYTES, checksum, fsync_directory, publish_directory
from llama_train.checkpoint.collective import Group, broadcast_bytes, gather_bytes, group_rank
from llama_train.checkpoint.index import (
    INDEX,
    aligned,
    complete_steps,
    is_safe_name,
    parse_index,
    rank_file,
    step_name,
)
from llama_train.checkpoint.index_writer import RankReport, encode_index, failure, outcome
from llama_train.checkpoint.restore import checked_index_bytes
from llama_train.engine.engine import Chunk

_LEFTOVER = re.compile(r"\.step-\d{8,}\.(partial|replaced|deleted)")
_log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run. One store at a time may write to a directory; all ranks hold one each.

    Args:
        directory: the run's `checkpoints/`, on a file system that all ranks share; made if missing.
        group: a gloo group of all ranks; nobody else may use it while a save is under way. None: one process.
        keep_last: this many of the newest checkpoints stay.
        keep_every: steps divisible by this stay for good; 0: none.
        asynchronous: `save` returns when the chunks are copied to host memory and a thread writes them. One copy
            is held, from the first save on: the next `save` waits for the thread.

    Raises:
        CheckpointError: the directory cannot be made or read.
    """

    def __init__(
        self,
        directory: Path,
        group: Group = None,
        keep_last: int = 2,
        keep_every: int = 0,
        asynchronous: bool = False,
    ) -> None:
        assert sys.byteorder == "little", "checkpoints are little-endian"
        assert keep_last >= 1
        self.directory = Path(directory)
        self._group = group
        self._rank = group_rank(group)
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._buffers: list[torch.Tensor] = []
        self.damaged: set[int] = set()  # steps whose checkpoints are known to be damaged: they keep no place
        self._together(self._clean_up)

    def save(
        self, step: int, chunks: Iterable[Chunk], state: dict[str, Any], files: dict[str, Path] | None = None
    ) -> None:
        """Write the checkpoint of `step`; every rank calls this with its own chunks.

        Args:
            chunks: this rank's rectangles; those whose `owner` is not set are left out.
            state: JSON values, the same on every rank; rank 0's are written.
            files: name inside the checkpoint → small file to copy; rank 0's are written.

        Raises:
            CheckpointError: on every rank, if any rank could not write, or (asynchronous) if the save before this
                one could not; the previous checkpoint stays the latest.
        """
        self.wait()
        owned: Iterable[Chunk] = (chunk for chunk in chunks if chunk.owner)
        if not self._asynchronous:
            self._write(step, owned, state, files or {})
            return
        try:
            owned = self._host_copies(owned)
        except Exception as error:  # the other ranks are about to wait for this one: they must hear of it
            owned = _failing(error)
        arguments = (step, owned, copy.deepcopy(state), dict(files or {}))
        self._thread = threading.Thread(target=self._write_in_thread, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def _host_copies(self, owned: Iterable[Chunk]) -> list[Chunk]:
        """Copy the chunks to where later steps do not change them.

        The memory is kept from save to save: getting it anew from the system takes longer than the copy itself.
        """
        copies = []
        for position, chunk in enumerate(owned):
            tensor = chunk.tensor.detach()
            buffer = self._buffers[position] if position < len(self._buffers) else None
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[position:] = [buffer]
            buffer.copy_(tensor)
            copies.append(replace(chunk, tensor=buffer))
        return copies

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: the asynchronous save could not be completed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, ascending."""
        return list(complete_steps(self.directory))

    def file(self, step: int, rank: int) -> Path:
        """Return where the bytes of rank `rank` are in the checkpoint of `step`."""
        return self.directory / step_name(step) / rank_file(rank)

    def latest(self) -> Path | None:
        """Return the complete checkpoint of the highest step."""
        return next(reversed(complete_steps(self.directory).values()), None)

    def _write_in_thread(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._failure = error

    def _write(self, step: int, chunks: Iterable[Chunk], state: dict[str, Any], files: dict[str, Path]) -> None:
        partial = self.directory / f".{step_name(step)}.partial"
        self._together(lambda: _make_anew(partial))
        try:
            report = write_rank_file(partial / rank_file(self._rank), chunks).encode()
        except Exception as error:
            report = failure(f"rank {self._rank}: {_explain(error)}")
        try:
            reports = gather_bytes(report, self._group)
        except RuntimeError as error:
            raise CheckpointError(f"step {step} is not saved: a rank is gone: {error}") from error
        self._together(lambda: self._publish(step, partial, reports, state, files))

    def _publish(
        self,
        step: int,
        partial: Path,
        reports: list[bytes],
        state: dict[str, Any],
        files: dict[str, Path],
    ) -> None:
        """On rank 0: write the index over what the ranks wrote, make the directory visible, and drop old ones."""
        try:
            outcomes = [outcome(report) for report in reports]
            errors = [each["error"] for each in outcomes if "error" in each]
            if errors:
                raise CheckpointError("; ".join(errors))
            for rank, each in enumerate(outcomes):
                path = partial / rank_file(rank)
                if not path.is_file() or path.stat().st_size != each["bytes"]:
                    raise CheckpointError(
                        f"{path}: rank {rank} wrote {each['bytes']} bytes that rank 0 does not see; "
                        "checkpoints must be on a file system that all ranks share"
                    )
            copied = {name: _copy(source, partial, name) for name, source in files.items()}
            data = encode_index(step, BLOCK_BYTES, reports, copied, state)
            parse_index(data, partial / INDEX)  # what no reader would accept is not published
            with open(partial / INDEX, "wb") as file:
                _write(file, data)
                _flush(file)
            final = self.directory / step_name(step)
            replaced = self.directory / f".{step_name(step)}.replaced"
            if final.exists():
                os.rename(final, replaced)
            publish_directory(partial, final)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._put_back_replaced()
            before = next(reversed(complete_steps(self.directory).values()), None)
            stays = f"{before} stays the latest" if before else "there is no earlier checkpoint"
            raise CheckpointError(f"step {step} is not saved: {_explain(error)}. Nothing is lost: {stays}") from error
        _delete(replaced)
        self._drop_old(step)

    def _drop_old(self, saved: int) -> None:
        found = complete_steps(self.directory)
        self.damaged.discard(saved)
        newest = self._newest_sound(found, saved)
        for step, path in found.items():
            for_good = self._keep_every and step % self._keep_every == 0
            # `saved` is the one known to be good: a higher step may be the damaged one that this run started over from
            if step in newest or for_good or step == saved:
                continue
            hidden = self.directory / f".{path.name}.deleted"
            # hidden first: whoever lists the checkpoints never sees one that is half gone
            try:
                os.rename(path, hidden)
            except OSError as error:
                _log.warning("%s: this old checkpoint cannot be removed: %s", path, error.strerror)
            _delete(hidden)

    def _newest_sound(self, found: dict[int, Path], saved: int) -> list[int]:
        """Return the newest steps, as many as are to be kept; a damaged one takes no good one's place."""
        kept: list[int] = []
        for step in sorted(found, reverse=True):
            if len(kept) == self._keep_last:
                break
            if step in self.damaged:
                continue
            try:
                if step != saved:
                    checked_index_bytes(found[step])
            except CheckpointError as error:
                _log.warning("%s", error)
                self.damaged.add(step)
                continue
            kept.append(step)
        return kept

    def _clean_up(self) -> None:
        """On rank 0: remove what processes that died half-way have left."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._put_back_replaced()
        for path in self.directory.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                _log.info("%s: removed, left by a process that ended while saving", path)
                shutil.rmtree(path)

    def _put_back_replaced(self) -> None:
        for path in self.directory.glob(".step-*.replaced"):
            final = self.directory / path.name.removeprefix(".").removesuffix(".replaced")
            if not final.exists():
                os.rename(path, final)

    def _together(self, action: Callable[[], None]) -> None:
        """Run `action` on rank 0; all ranks go on together, or all raise what rank 0 met."""
        message = b""
        if self._rank == 0:
            try:
                action()
            except Exception as error:
                message = _explain(error).encode()
        try:
            message = broadcast_bytes(message, self._group)
        except RuntimeError as error:
            raise CheckpointError(f"{self.directory}: a rank is gone while saving: {error}") from error
        if message:
            raise CheckpointError(message.decode())


def write_rank_file(path: Path, chunks: Iterable[Chunk]) -> RankReport:
    """Write `chunks` one after the other, flush them to disk, and return this rank's part of the index.

    Raises:
        CheckpointError: the file system refuses; says how many bytes were needed.
    """
    report = RankReport()
    size, name = 0, "its first chunk"
    try:
        with open(path, "wb") as file:
            for chunk in chunks:
                data = _bytes_of(chunk.tensor)
                size, name = len(data), chunk.name
                if not size:
                    continue
                _write(file, bytes(aligned(report.bytes) - report.bytes))
                digests = []
                for begin in range(0, size, BLOCK_BYTES):
                    block = data[begin : begin + BLOCK_BYTES]
                    digests.append(checksum(block))
                    _write(file, block)
                report.add(chunk, size, digests)
                del chunk, data, block  # before the next one is made
            _flush(file)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise CheckpointError(
            f"{path}: {error.strerror}: {size} bytes needed for {name} after {report.bytes} bytes, {free} bytes free; "
            "make room (checkpoint.keep_last, checkpoint.keep_every) or save elsewhere"
        ) from error
    return report


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's elements in row-major order, in host memory."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _copy(source: Path, partial: Path, name: str) -> list[Any]:
    """Copy a small file into the checkpoint; return its size and checksum."""
    assert is_safe_name(name), name
    data = Path(source).read_bytes()
    target = partial / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        _write(file, data)
        _flush(file)
    for directory in target.relative_to(partial).parents:
        fsync_directory(partial / directory)
    return [len(data), checksum(data)]


def _make_anew(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _delete(hidden: Path) -> None:
    """Delete a directory that no reader looks at; a failure costs only room, so it does not fail the save."""
    try:
        shutil.rmtree(hidden)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("%s: cannot be deleted, remove it by hand: %s", hidden, error.strerror)


def _failing(error: Exception) -> Iterator[Chunk]:
    raise error
    yield


def _explain(error: Exception) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}"
