"""What watches over the training loop: stop requests that all ranks hear at the same step, and the watchdog."""

import contextlib
from collections.abc import Iterator

from llama_train.distributed import World
from llama_train.run import Run
from llama_train.survive.signals import StopRequest, agreed
from llama_train.survive.watchdog import Watchdog, explain_peer_failure


class Guard:
    """Told where the loop is; asked whether to go on."""

    def __init__(self, stop: StopRequest, watchdog: Watchdog, world: World) -> None:
        self._stop = stop
        self._watchdog = watchdog
        self._world = world
        self.stopped_by: str | None = None

    def beat(self, step: int, phase: str) -> None:
        self._watchdog.beat(step, phase)

    def stop_requested(self) -> bool:
        """Return whether any rank was asked to stop; every rank gets the same answer at the same step."""
        return agreed(self._stop.requested is not None, self._world.control)


@contextlib.contextmanager
def guards(run: Run, world: World) -> Iterator[Guard]:
    with StopRequest() as stop, Watchdog(run, world) as watchdog:
        try:
            yield Guard(stop, watchdog, world)
        except RuntimeError as error:
            raise explain_peer_failure(error, watchdog) from error
