"""A job of many processes lives and dies together, and says whose fault it was."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llama_foundation.errors import RunError
from llama_train.environment import launcher_keeps_store
from llama_train.survive.beats import INTERVAL_SECONDS, SILENT_SECONDS, Beat, Board, culprit, place_of
from llama_train.survive.flight_recorder import write_flight_record
from llama_train.survive.neighbours import Neighbours

LINGER_SECONDS = 4 * INTERVAL_SECONDS
"""How long rank 0 stays after the last word if it keeps the store that the others read it from."""

LEAVE_SECONDS = 5.0
"""How long a process may take to end by itself after another one said that the job is over."""

_RECORD_SECONDS = 3.0
"""How long NCCL may take to hand out its flight record: its threads may be what stands still."""

_STORE_SECONDS = SILENT_SECONDS + 5.0
"""No question to the store may take longer: the machine that keeps it may be gone."""

_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "imeout caused pair closure",
    "Socket closed",
    "Connection refused",
    "remote process exited",
)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Position:
    """The last beat, in one object so that another thread never sees half of it."""

    step: int
    phase: str
    part: int
    monotonic_time: float
    wall_time: float


class Watchdog:
    """Ends this process when it stands still, or when another process of the job says that the job is over.

    The loop calls `beat` when it enters a phase. If no beat comes for the deadline of the phase, all thread stacks go
    to standard error and `run_directory/logs/stacks-rank-N.txt`, one line names the rank that the others wait for, and
    the process ends with `RunError.exit_code`. Until the first step is over every phase has the deadline of "start".

    An exception that leaves the `with` block is published, so that the others can say who failed. If it is a broken
    connection to another rank, it becomes the `RunError` of `explain_peer_failure`.

    Args:
        rank, world: this process, and how many there are.
        store: a `torch.distributed.Store` that all ranks share; None in a run of one process.
        deadline_seconds: `engine.timeout_seconds`.
        host: this machine's name.
        run_directory: of this run.
        deadlines: phase → seconds, where they are not `deadline_seconds`.
        nccl: whether to write NCCL's flight record, too, to `run_directory/logs/nccl-rank-N.json`.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: Any,
        deadline_seconds: float,
        host: str,
        run_directory: Path,
        deadlines: Mapping[str, float] | None = None,
        nccl: bool = False,
    ) -> None:
        assert store is not None or world == 1
        self.rank, self.host = rank, host
        self._world = world
        self._deadline = deadline_seconds
        self._deadlines = deadlines or {}
        self._stacks = run_directory / "logs" / f"stacks-rank-{rank}.txt"
        self._record = run_directory / "logs" / f"nccl-rank-{rank}.json" if nccl else None
        self._board = Board(store, world) if world > 1 else None
        self._neighbours: Neighbours | None = None
        self._main = threading.main_thread().ident
        self._done = threading.Event()
        self._own_failure = False
        self._lost_peer = False
        self._heard: str | None = None  # why the job ends, as the store last said
        self._first_step: int | None = None
        self._at = _Position(0, "start", 0, time.monotonic(), time.time())
        self._count = 0

    @property
    def step(self) -> int:
        """The step of the last beat."""
        return self._at.step

    def beat(self, step: int, phase: str) -> None:
        """Say that this rank begins `phase` of `step`. Every rank goes through the same phases."""
        if self._first_step is None:
            self._first_step = step
        part = self._at.part + 1 if step == self._at.step else 0
        self._at = _Position(step, phase, part, time.monotonic(), time.time())

    def starting(self, part: str) -> None:
        """Say that this rank has come to `part` of its start; the start has one deadline for all of it."""
        at = self._at
        self._at = _Position(0, f"start ({part})", at.part + 1, at.monotonic_time, time.time())

    def report_failure(self, exception: BaseException) -> None:
        """Tell the other ranks why this one ends."""
        self._own_failure = True
        if self._board is None:
            return
        board = self._board
        message = str(exception).strip().split("\n")[0]
        text = f"rank {self.rank} ({self.host}) failed in step {self._at.step}, phase {self._at.phase}: "
        _within(_STORE_SECONDS, lambda: board.accuse(f"{text}{type(exception).__name__}: {message}"))
        self._linger()

    def __enter__(self) -> "Watchdog":
        self._at = _Position(0, "start", 0, time.monotonic(), time.time())
        threading.Thread(target=self._guard, name="watchdog", daemon=True).start()
        if self._board is not None:
            self._neighbours = Neighbours(self._board.store, self._board.prefix, self.rank)
            threading.Thread(target=self._publish, name="watchdog-store", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exception: BaseException | None, trace: object) -> None:
        try:
            if exception is None:
                if self._neighbours is not None:
                    _within(_STORE_SECONDS, self._neighbours.leave)
                return
            if self._lost_peer:
                return  # it is explained
            explained = self._explained(exception)
            if explained is not None:
                raise explained from exception
            self.report_failure(exception)
        finally:
            self._done.set()

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Around the loop: turn a broken connection into who is behind it, before anybody else sees the error."""
        try:
            yield
        except Exception as error:
            explained = self._explained(error)
            if explained is None:
                raise
            raise explained from error

    def _explained(self, error: BaseException) -> RunError | None:
        if self._board is None or not is_peer_failure(error):
            return None
        self._lost_peer = True
        return explain_peer_failure(error, self)

    def failure(self) -> str:
        """Find out why other ranks do not answer: what one of them published, or who is silent or behind."""
        assert self._board is not None
        board, neighbours = self._board, self._neighbours

        def ask() -> str:
            published = board.failure()
            if published is not None:
                return published
            beats, silent, ended = board.watch(self.rank, neighbours.ended if neighbours else list)
            return board.accuse(culprit(beats, silent, self._world, ended))

        answer = _within(_STORE_SECONDS, ask) or self._heard
        self._linger()
        return answer or f"the job's store does not answer: {_keeper()} ended"

    def _linger(self) -> None:
        if self.rank == 0 and not launcher_keeps_store():
            time.sleep(LINGER_SECONDS)

    def _now(self) -> Beat:
        place, waiting = place_of(sys._current_frames().get(self._main))
        waiting = waiting or self._lost_peer  # its collective has just given up waiting for somebody
        self._count += 1
        at = self._at
        return Beat(self.rank, self.host, at.step, at.phase, at.part, at.wall_time, place, waiting, self._count)

    def _publish(self) -> None:
        board, neighbours = self._board, self._neighbours
        assert board is not None and neighbours is not None
        while not self._done.is_set():
            with contextlib.suppress(RuntimeError):  # a lost store is told by the deadline, with what else is known
                board.write(self._now())
                # In this order: a rank that ends after it has published why is not accused of having ended.
                ended = neighbours.ended()
                if ended:
                    board.accuse(culprit(board.read(ended), [], self._world, ended))
                self._heard = board.failure()
                patience = LINGER_SECONDS if ended else LEAVE_SECONDS  # a dead rank has nothing to add
                if self._heard and not self._own_failure and not self._done.wait(patience):
                    self._dump_collectives()
                    self._end(f"{self._heard}; this is rank {self.rank} ({self.host}), which ends too")
            self._done.wait(INTERVAL_SECONDS)

    def _guard(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS / 2):
            at = self._at
            first = self._first_step is None or at.step == self._first_step
            limit = self._deadlines.get("start" if first else at.phase, self._deadline)
            still = time.monotonic() - at.monotonic_time
            if still > limit:
                place, _ = place_of(sys._current_frames().get(self._main))
                self._dump_stacks()
                self._dump_collectives()
                why = self.failure() if self._board is not None else _alone(self._now())
                if self._done.is_set():
                    return
                self._end(
                    f"no progress for {still:.0f} s (allowed: {limit:.0f} s) in step {at.step}, phase {at.phase}, at "
                    f"{place}: {why}; stacks: {self._stacks}"
                )

    def _dump_stacks(self) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        with contextlib.suppress(OSError):
            self._stacks.parent.mkdir(parents=True, exist_ok=True)
            with open(self._stacks, "w") as file:
                faulthandler.dump_traceback(file=file, all_threads=True)

    def _dump_collectives(self) -> None:
        path = self._record
        if path is not None:
            why_not = _within(_RECORD_SECONDS, lambda: [write_flight_record(path)]) or ["NCCL does not answer"]
            if why_not[0] is not None:
                os.write(2, f"warning: {path} is not written: {why_not[0]}\n".encode())

    def _end(self, message: str) -> None:
        os.write(2, f"error: {message}\n".encode())
        os._exit(RunError.exit_code)


def is_peer_failure(exception: BaseException) -> bool:
    """Whether a collective failed because a connection to another rank or to the store broke or timed out."""
    return _lost_peer(exception) is not None


def _lost_peer(exception: BaseException) -> BaseException | None:
    """Return the broken connection that is `exception` or has caused it; a pipeline's stage wraps what it meets."""
    import torch.distributed

    found: BaseException | None = exception
    while found is not None:
        if isinstance(found, torch.distributed.DistError):
            return found
        if isinstance(found, RuntimeError) and any(text in str(found) for text in _LOST_PEER):
            return found
        found = found.__cause__
    return None


def explain_peer_failure(exception: BaseException, watchdog: Watchdog) -> RunError:
    """Return an error that names the rank behind a broken connection.

    It takes up to SILENT_SECONDS: a dead rank is known by its silence.
    """
    why = watchdog.failure()
    exception = _lost_peer(exception) or exception
    first = str(exception).strip().split("\n")[0].split(". This is typically")[0]
    trace = exception.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place, _ = place_of(None if trace is None else trace.tb_frame)
    return RunError(
        f"{why}; rank {watchdog.rank} ({watchdog.host}) noticed in step {watchdog.step} at {place} by: {first}"
    )


def _alone(beat: Beat) -> str:
    return f"step {beat.step}, phase {beat.phase}, at {beat.place}"


def _keeper() -> str:
    return "the launcher" if launcher_keeps_store() else "rank 0, which keeps it,"


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer | None:
    """Return what `ask` returns, or None if it fails or takes longer than `seconds`."""
    answers: list[Answer] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=run, name="watchdog-question", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
