"""A tier on disks that every node has for itself: each rank keeps a copy of its own rectangles, and reads only that.

    DIRECTORY/rank-00003/step-00000020/   a checkpoint of one process, see store.py

What rank 3 holds is written as whole tensors, named by where they lie: `weights/model.norm.weight@[0]`. So nothing of
another node is needed, and none of it can be read on another layout: then the durable tier is what there is. A copy
counts if all ranks have one of the same save.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.collective import Group, broadcast_bytes, gather_everywhere, group_rank
from llama_train.checkpoint.index import rank_file, step_name
from llama_train.checkpoint.restore import Checkpoint, check_same_tensors, open_checkpoint
from llama_train.checkpoint.store import CheckpointStore
from llama_train.checkpoint.stored_chunk import DamagedError
from llama_train.engine.engine import Chunk

_SAVE = "save"
"""Where a copy's state says of which save it is: after a rewind a step is saved again, with other weights."""


class LocalCheckpoint:
    """This rank's copy of its own rectangles after `step`; every rank has opened its own of the same save."""

    def __init__(self, mine: Checkpoint) -> None:
        self._mine = mine
        self.directory, self.step, self.state = mine.directory, mine.step, mine.state

    def restore(self, targets: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the rectangles of `targets` with what was saved; those without elements are left out.

        Raises:
            DamagedError: the copy is of other rectangles (another layout), or a file of it is damaged.
        """
        wanted = {_name(target): target for target in targets if target.tensor.numel()}
        try:
            check_same_tensors(self._mine, {name: tuple(target.tensor.shape) for name, target in wanted.items()})
        except CheckpointError as error:
            raise DamagedError(f"{self.directory}: not of this layout, which only its own tier can hold") from error
        for name, target in wanted.items():
            shape = tuple(target.tensor.shape)
            yield replace(target, tensor=self._mine.read(name, tuple(0 for _ in shape), shape))


class LocalTier:
    """The copies that the ranks of a run have on disks of their own; all ranks call all of it together.

    Args:
        directory: on this rank's node; it may be a shared one, too.
        group: a gloo group of all ranks that only the calling thread uses, or None for one process.
        keep_last: this many stay, and one more: while some ranks have written the next one, others have not.
        asynchronous: as a `CheckpointStore`'s.
    """

    def __init__(self, directory: Path, group: Group, keep_last: int, asynchronous: bool) -> None:
        self._group = group
        self.directory = Path(directory) / f"rank-{group_rank(group):05d}"
        self._together(lambda: self.directory.mkdir(parents=True, exist_ok=True))
        self._store = CheckpointStore(self.directory, keep_last=keep_last + 1, asynchronous=asynchronous)

    @property
    def damaged(self) -> set[int]:
        """Steps whose copies are not to be used, and keep no place."""
        return self._store.damaged

    @damaged.setter
    def damaged(self, steps: set[int]) -> None:
        self._store.damaged = steps

    def steps(self) -> list[int]:
        """Return the steps of which this rank has a copy, ascending."""
        return self._store.steps()

    def file(self, step: int, rank: int) -> Path:
        """Return where rank `rank` keeps its bytes of `step`."""
        return self.directory.parent / f"rank-{rank:05d}" / step_name(step) / rank_file(0)

    def save(self, step: int, chunks: Iterable[Chunk], state: dict[str, Any], files: dict[str, Path]) -> None:
        """Write this rank's copy of `step`, after every rank has written the one before.

        Raises:
            CheckpointError: on every rank, if one could not write (this copy, or if asynchronous the one before).
        """
        self.wait()
        name = broadcast_bytes(uuid.uuid4().hex.encode(), self._group).decode()
        self._together(lambda: self._store.save(step, _own(chunks), {**state, _SAVE: name}, files))

    def wait(self) -> None:
        """Wait until no rank is writing.

        Raises:
            CheckpointError: on every rank, if one could not write.
        """
        self._together(self._store.wait)

    def newest(self, below: int | None = None) -> tuple[LocalCheckpoint | None, list[str]]:
        """Open the newest copy that all ranks have; say which are damaged, and why none is good.

        Args:
            below: only lower steps are looked at.
        """
        good: dict[str, Checkpoint] = {}
        messages: list[str] = []
        for step in self.steps():
            if below is not None and step >= below:
                continue
            try:
                found = open_checkpoint(self.directory / step_name(step))
                good[f"{step} {found.state.get(_SAVE)}"] = found
            except CheckpointError as error:
                messages.append(str(error))
        mine = json.dumps({"good": list(good), "bad": messages})
        ranks = [json.loads(each or "{}") for each in gather_everywhere(mine, self._group)]
        common = set.intersection(*(set(rank["good"]) for rank in ranks))
        passed_over = sorted({message for rank in ranks for message in rank["bad"]})
        newest = max(common, key=lambda each: int(each.split()[0]), default=None)
        if newest is None and any(rank["good"] for rank in ranks):
            without = [number for number, rank in enumerate(ranks) if not rank["good"]]
            why = f"ranks {without[:8]} have none" if without else "what the ranks have is not of one save"
            passed_over.append(f"{self.directory.parent}: no copy that all {len(ranks)} ranks could go on from: {why}")
        return (LocalCheckpoint(good[newest]) if newest else None), passed_over

    def _together(self, action: Callable[[], None]) -> None:
        """Do `action` on every rank; if one fails, all raise what it met."""
        error = None
        try:
            action()
        except (CheckpointError, OSError) as failed:
            error = f"rank {group_rank(self._group)}: {failed}"
        errors = [each for each in gather_everywhere(error, self._group) if each is not None]
        if errors:
            raise CheckpointError(errors[0])


def _name(chunk: Chunk) -> str:
    return f"{chunk.name}@{list(chunk.offsets)}"


def _own(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Return all of this rank's rectangles, also those that another rank owns, each once and as a whole tensor."""
    seen: set[str] = set()
    for chunk in chunks:
        name, shape = _name(chunk), tuple(chunk.tensor.shape)
        if name not in seen:
            seen.add(name)
            yield replace(chunk, name=name, shape=shape, offsets=tuple(0 for _ in shape), owner=True)
