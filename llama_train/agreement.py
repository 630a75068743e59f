"""Whether all ranks of a job run the same code with the same configuration, found out before they begin."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from llama_foundation.errors import RunError
from llama_train.environment import launcher_keeps_store

if TYPE_CHECKING:
    import torch.distributed as dist

PACKAGES = ("llama_train", "llama_foundation", "data_pipeline")

LEAVE_SECONDS = 60.0
"""How long rank 0 stays for ranks that have not yet heard that nobody trains."""


def software() -> dict[str, str]:
    """Return what decides what this process computes: versions, and a hash of the source that it runs."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return {"python": platform.python_version(), "torch": version("torch"), "llama-train": digest.hexdigest()[:16]}


def difference(mine: dict[str, str], leading: dict[str, str]) -> str | None:
    """Return what this process runs in another version than rank 0, None if nothing."""
    names = [name for name in leading if mine.get(name) != leading[name]]
    return ", ".join(f"{name} {mine.get(name)} instead of {leading[name]}" for name in names) or None


def other_command(mine: list[str], leading: list[str]) -> str | None:
    """Return which arguments this process got and rank 0 did not, and the other way round; None if they are the same.

    Only rank 0's are used: others would be lost without a word. Their order is left to those who start.
    """
    if sorted(mine) == sorted(leading):
        return None
    own, others = (" ".join(set(a) - set(b)) or "fewer" for a, b in ((mine, leading), (leading, mine)))
    return f"{own} instead of {others}"


def agree(store: dist.Store, rank: int, size: int, problem: str | None, timeout_seconds: float) -> None:
    """Wait for all ranks to compare themselves with rank 0; every rank calls it.

    Args:
        problem: what is different on this rank.

    Raises:
        RunError: the first problem of any rank, on all of them; or ranks that did not come in time.
    """
    if size == 1:
        return
    if problem is not None:
        store.compare_set("disagreement", "", problem)
    store.set(f"here-{rank}", "")
    if store.add("here", 1) == size:
        store.set("all-here", "")
    try:
        store.wait(["all-here"], timedelta(seconds=timeout_seconds))
    except RuntimeError:
        missing = [each for each in range(size) if not store.check([f"here-{each}"])]
        named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        raise RunError(f"rank {named} of {size} did not begin within {timeout_seconds:.0f} s of the others") from None
    if store.check(["disagreement"]):
        problem = store.get("disagreement").decode()
        leave_together(store, rank, size)
        raise RunError(problem)


def leave_together(store: dist.Store, rank: int, size: int) -> None:
    """Wait, on a rank 0 that keeps the store, for the others to have heard; every rank calls it before it ends.

    Otherwise a rank that comes later would find nobody to ask, and try for as long as it may wait for the others.
    """
    if launcher_keeps_store():
        return
    with contextlib.suppress(RuntimeError):  # rank 0 has waited long enough, or left between our call and its answer
        if store.add("leaving", 1) == size:
            store.set("all-leave", "")
        if rank == 0:
            store.wait(["all-leave"], timedelta(seconds=LEAVE_SECONDS))
