"""`llama-launch hosts`: the line that every machine of a cluster without SLURM has to run."""

import contextlib
import math
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from launch.config import Job, check_processes
from launch.local import gpus_here
from launch.snapshot import refuse_secrets
from llama_foundation.errors import ConfigError, RunError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=30")
NOTICE_SECONDS = 60.0  # for ranks whose peer has ended: by then its connections have failed, and they have said so


def hosts(job: Job) -> int:
    """Print a line for each host, or start them all by ssh and wait.

    Raises:
        ConfigError: no hosts, or the layout does not fit them.
        RunError: start, and a host cannot be reached or lacks the directory.
    """
    names = job.launch.hosts
    if not names:
        raise ConfigError("hosts=[]: give the machines' names: hosts=[node1,node2]")
    refuse_secrets(job.arguments)
    count = job.launch.processes_per_node or job.train.cluster.processes_per_node or gpus_here(job.train.cluster.device)
    if not count:
        raise ConfigError("how many processes does a machine have? Give processes_per_node=8")
    check_processes(job.train, len(names), count)
    commands = {name: line(job, number, count) for number, name in enumerate(names)}
    if not job.launch.start or job.launch.dry_run:
        for name, command in commands.items():
            print(f"# on {name}\n{command}")
        return 0
    check_hosts(names, Path.cwd(), python_of(job))
    return start(commands)


def line(job: Job, number: int, count: int) -> str:
    """Return the shell command of host `number`."""
    names = job.launch.hosts
    # ssh's user@host is not part of the address
    command = [python_of(job), "-m", "launch.torchrun", f"--nodes={len(names)}", f"--node={number}"]
    command += [f"--processes={count}", f"--address={names[0].rpartition('@')[2]}", f"--port={job.launch.port}"]
    command += [f"--id={job.train.name}"]
    interface = job.train.cluster.interface
    network = f"NCCL_SOCKET_IFNAME={interface} GLOO_SOCKET_IFNAME={interface} " if interface else ""
    return f"cd {shlex.quote(str(Path.cwd()))} && {network}{shlex.join([*command, 'llama_train', *job.arguments])}"


def python_of(job: Job) -> str:
    """Return the interpreter that the hosts use."""
    return job.train.cluster.slurm.python or sys.executable


def check_hosts(names: list[str], directory: Path, python: str) -> None:
    """Ask every host, all at once, whether it can run the job.

    Raises:
        RunError: of every host that can't, why.
    """
    quoted = shlex.quote(str(directory)), shlex.quote(python)
    question = f"cd {quoted[0]} || exit 2; command -v {quoted[1]} >/dev/null || exit 3"
    missing = {2: f"has no directory {directory}", 3: f"has no {python}"}
    asked = {
        name: subprocess.Popen([*SSH, name, question], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for name in names
    }
    problems = []
    for name, process in asked.items():
        said = process.communicate()[1].strip().rpartition("\n")[2]
        if process.returncode:
            problems.append(f"{name} {missing.get(process.returncode) or f'cannot be reached by ssh ({said})'}")
    if problems:
        raise RunError(
            f"{'; '.join(problems)}. Nothing was started: hosts need a key, the same directory and interpreter"
        )


def start(commands: dict[str, str]) -> int:
    """Run the commands by ssh, all at once; return the status of the first that failed.

    SIGINT, SIGTERM and SIGUSR1 reach the ranks as ctrl-c in a terminal does: they write a checkpoint and end. When one
    host fails, the others have a while to notice and say so; then their terminals are closed, which ends them.
    """
    running = {
        name: subprocess.Popen([*SSH, "-tt", name, command], stdin=subprocess.PIPE, start_new_session=True)
        for name, command in commands.items()
    }

    def interrupt(number: int, frame: FrameType | None) -> None:
        for process in running.values():
            with contextlib.suppress(OSError):  # it has just ended
                process.stdin.write(b"\x03")
                process.stdin.flush()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    failed, last_second = 0, math.inf
    try:
        while running and time.monotonic() < last_second:
            for name, process in [(name, process) for name, process in running.items() if process.poll() is not None]:
                del running[name]
                status = process.returncode if process.returncode >= 0 else 128 - process.returncode
                if status:
                    lost = ": ssh lost the connection" if status == 255 else ""
                    print(f"{name}: status {status}{lost}", file=sys.stderr)
                    failed = failed or status
                    last_second = min(last_second, time.monotonic() + NOTICE_SECONDS)
            time.sleep(0.1)
    finally:
        for name, process in running.items():
            print(f"{name}: ended, because another host has failed", file=sys.stderr)
            process.terminate()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed
