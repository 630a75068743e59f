"""One all-reduce among some ranks, in a process of its own: what hangs, crashes or is aborted by NCCL is only that."""

import ctypes
import json
import multiprocessing
import os
import signal
import statistics
import time
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

FORK = multiprocessing.get_context("fork")  # torch is imported already; nothing in the parent has touched a GPU
REPEATS = 3
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def bus_bandwidth(
    name: str, members: list[int], rank: int, device: str, megabytes: int, seconds: float
) -> tuple[float, str]:
    """All-reduce among `members`; every one of them calls it at about the same time.

    Args:
        name: of this measurement, never used before; members meet under it in the job's store.
        members: ranks, this one among them, in the same order everywhere.
        device: cpu, cuda, or auto for CUDA where there is any.
        megabytes: size of the float32 tensor, in MiB.
        seconds: after which it has failed.

    Returns:
        Bus bandwidth in GB/s, bytes · 2(n − 1)/n / seconds (NVIDIA/nccl-tests, doc/PERFORMANCE.md), and nothing; or 0
        and why it failed.
    """
    receiving, sending = FORK.Pipe(duplex=False)
    arguments = (sending, name, members.index(rank), len(members), device, megabytes, seconds)
    process = FORK.Process(target=_answer, args=arguments, daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(seconds + 5):  # it gives up by itself before that, unless it hangs
            return 0.0, f"no answer within {seconds:.0f} s"
        value, problem = json.loads(receiving.recv_bytes())
        return value, problem
    except EOFError:
        process.join()
        return 0.0, f"its process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiving.close()


def _answer(sending: Connection, *arguments) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a process on a GPU must not outlive who started it
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    try:
        answer = (_all_reduce(*arguments), "")
    except (RuntimeError, OSError) as error:
        answer = (0.0, str(error).partition("\n")[0])
    sending.send_bytes(json.dumps(answer).encode())


def _all_reduce(name: str, place: int, size: int, device: str, megabytes: int, seconds: float) -> float:
    timeout = timedelta(seconds=seconds)
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    dist.init_process_group(
        "nccl" if use_cuda else "gloo",
        store=dist.PrefixStore(f"measure-{name}", store),
        rank=place,
        world_size=size,
        timeout=timeout,
    )
    tensor = torch.ones(megabytes << 18, device="cuda" if use_cuda else "cpu")
    took = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        dist.all_reduce(tensor)
        if use_cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    # The first one connects; of the others the median, because one disturbance is not the network.
    return tensor.numel() * 4 * 2 * (size - 1) / size / statistics.median(took[1:]) / 1e9
