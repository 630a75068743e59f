"""`python -m launch.torchrun`: torchrun's agent on one node, which starts and watches the ranks of this node.

It is torchrun's own agent (torch.distributed.launcher), with three differences. The place where all meet listens on
one address instead of on every interface. A signal is handed to the ranks, which write a checkpoint and leave in
their own time; torchrun would give them 30 s. SIGUSR1 is held back until they are ready for it. And what the ranks have
said themselves is not repeated in a traceback: the exit status is that of the first rank that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from llama_foundation.errors import exit_status

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MEETING_SECONDS = 600
"""How long a node waits for the others; nodes of a large job do not start at the same moment."""
FORWARDED = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    # First of all: by default these would end the agent and leave its ranks behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # the ranks inherit it (launch/hold.py)
    threading.Thread(target=_hand_on_warnings, daemon=True).start()
    for number in FORWARDED:
        signal.signal(number, _forward)
    options = _options()
    if options.processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Start the ranks of this node, wait for them, return the job's exit status."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    register()
    config = LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=options.processes,
        run_id=options.id,
        rdzv_backend=BACKEND,
        rdzv_endpoint=f"{options.address}:{options.port}",
        rdzv_configs={"rank": options.node},
        max_restarts=0,  # a restart resumes from a checkpoint, with whichever nodes are left: the scheduler's business
        signals_to_handle="SIGHUP,SIGQUIT",
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        launch_agent(config, sys.executable, ["-u", "-m", *options.module])
    except ChildFailedError as error:
        return _status(error.get_first_failure()[1])
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


BACKEND = "llama_launch"


def register() -> None:
    """Make known to torch the way in which our nodes meet."""
    from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
    from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    from llama_train.distributed import serve

    class OnOneAddress(StaticTCPRendezvous):
        """Node 0 serves the store, on the address that all were told and on no other."""

        def get_backend(self) -> str:
            return BACKEND

        def next_rendezvous(self) -> RendezvousInfo:
            if self.rank == 0 and self._store is None:
                self._store = serve(self.master_addr, self.master_port, self.world_size, self.timeout)
            if self._store is not None:
                from torch.distributed import PrefixStore

                where = RendezvousStoreInfo(self.master_addr, self.master_port)
                return RendezvousInfo(PrefixStore(self.run_id, self._store), self.rank, self.world_size, where)
            return super().next_rendezvous()

    def create(parameters: RendezvousParameters) -> OnOneAddress:
        address, _, port = parameters.endpoint.rpartition(":")
        rank, nodes = parameters.config["rank"], parameters.max_nodes
        return OnOneAddress(address, int(port), rank, nodes, parameters.run_id, MEETING_SECONDS)

    rendezvous_handler_registry.register(BACKEND, create)


def _status(failure: ProcessFailure) -> int:
    """The exit status of a rank as a shell would report it; ranks that died without a word are named here."""
    if failure.exitcode >= 0:
        return failure.exitcode
    name = signal.Signals(-failure.exitcode).name
    host = os.uname().nodename
    print(f"error: local rank {failure.local_rank} on {host} was ended by {name}", file=sys.stderr)
    return 128 - failure.exitcode


def _hand_on_warnings() -> None:
    """Hand every SIGUSR1 to the ranks, as soon as there are any.

    In a step of SLURM ranks that ran already have got it; a second one means nothing to them.
    """
    while True:
        signal.sigwait({signal.SIGUSR1})
        while not (ranks := list(_ranks())):
            time.sleep(0.1)
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)


def _forward(number: int, frame: FrameType | None) -> None:
    """Hand a signal to the ranks; without any (not yet started) it ends this process as usual.

    In a step of SLURM the ranks have got it already, because SLURM signals all processes of a step; a second one could
    meet a rank that has let go of its handlers, and kill it.
    """
    ranks = list(_ranks())
    if not ranks:
        sys.exit(128 + number)
    if "SLURM_STEP_ID" not in os.environ:
        for pid in ranks:
            os.kill(pid, number)


def _ranks() -> Iterator[int]:
    """The process ids of this agent's ranks: its children that have a RANK."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"\0RANK=" in b"\0" + (directory / "environ").read_bytes():
                yield int(directory.name)
        except (OSError, ValueError, IndexError):
            continue  # it has just ended


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch.torchrun", description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes")
    parser.add_argument("--node", type=int, default=0, help="which one this is; node 0 is where all meet")
    parser.add_argument("--processes", type=int, required=True, help="ranks on this node")
    parser.add_argument("--address", default="127.0.0.1", help="address of node 0, an interface of which listens")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--id", default="llama", help="the same on all nodes and for no other job")
    parser.add_argument("module", nargs=argparse.REMAINDER, help="what the ranks run: llama_train and its arguments")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_status(main))
