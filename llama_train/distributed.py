"""The processes of one run: who they are, how they meet, and the groups they talk through."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from llama_foundation.errors import ConfigError, RunError
from llama_train.environment import environment_rank, launcher_keeps_store
from llama_train.survive.flight_recorder import keep_collectives


@dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    `control` is a CPU group for small agreements of the training loop. `background` is another one, so that a
    checkpoint written in a thread never mixes its messages with the loop's. `store` carries heartbeats; one process
    has nobody to send them to.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: dist.Store | None
    control: dist.ProcessGroup
    background: dist.ProcessGroup

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def host(self) -> str:
        return socket.gethostname()


def meet(timeout_seconds: float) -> dist.Store:
    """Return the key-value store that all processes of this run share, before any process group exists."""
    rank, size = environment_rank()
    if size == 1:
        return dist.HashStore()
    timeout = timedelta(seconds=timeout_seconds)
    if rank == 0 and not launcher_keeps_store() and "MASTER_ADDR" in os.environ:
        store: dist.Store = serve(os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500")), size, timeout)
    else:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timeout)))
    # A restarted job meets in the same store: its keys must not be those of the attempt that died.
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def serve(address: str, port: int, size: int, timeout: timedelta) -> dist.TCPStore:
    """Return the store that all of `size` processes meet in, served by this one on `address` alone.

    torch by itself would listen on every interface of the machine; who can reach the store can steer the run.

    Args:
        address: an address of this machine, or a name of one.

    Raises:
        RunError: the address is not this machine's, or the port is taken.
    """
    listener = None
    try:
        family, kind, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(4096)  # thousands of ranks come at once
    except OSError as error:
        if listener is not None:
            listener.close()
        raise RunError(
            f"{socket.gethostname()} cannot listen on {address} port {port}, where the processes of this run meet: "
            f"{error.strerror or error}; choose another port, or end what holds it"
        ) from error
    number = listener.detach()  # the store closes it
    return dist.TCPStore(
        address, port, size, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=number
    )


@contextlib.contextmanager
def distributed(device: str, store: dist.Store, timeout_seconds: float) -> Iterator[World]:
    """Start the process groups, yield this process' `World`, and tear them down.

    Args:
        device: "cpu", "cuda", or "auto" for CUDA where there is any.
        store: what `meet` returned.
        timeout_seconds: a collective that takes longer fails.

    Raises:
        ConfigError: CUDA was asked for and is not there, or this node has fewer devices than processes.
    """
    rank, size = environment_rank()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device=cuda, but torch sees no CUDA device; use cluster.device=cpu")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this node has no device: torch sees {torch.cuda.device_count()}; "
                "start at most one process per device"
            )
        torch.cuda.set_device(local_rank)
        keep_collectives()
    # Redistributions that are part of the plan are logged as warnings by DTensor.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
        store=dist.PrefixStore("groups", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    try:
        control = dist.new_group(backend="gloo", timeout=timeout)
        background = dist.new_group(backend="gloo", timeout=timeout)
        assert control is not None and background is not None
        yield World(
            rank=rank,
            size=size,
            local_rank=local_rank,
            device=torch.device("cuda", local_rank) if use_cuda else torch.device("cpu"),
            store=store if size > 1 else None,
            control=control,
            background=background,
        )
    finally:
        dist.destroy_process_group()
