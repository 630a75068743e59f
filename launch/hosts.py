"""`llama-launch hosts`: the line that every machine of a cluster without SLURM has to run."""

import shlex
import subprocess
import sys
from pathlib import Path

from launch.config import Job, check_processes
from launch.local import gpus_here
from launch.snapshot import refuse_secrets
from llama_foundation.errors import ConfigError


def hosts(job: Job) -> int:
    """Print a line for each host, or start them all by ssh and wait.

    Raises:
        ConfigError: no hosts, or the layout does not fit them.
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
    return start(commands)


def line(job: Job, number: int, count: int) -> str:
    """Return the shell command of host `number`."""
    python = job.train.cluster.slurm.python or sys.executable
    names = job.launch.hosts
    # ssh's user@host is not part of the address
    command = [python, "-m", "launch.torchrun", f"--nodes={len(names)}", f"--node={number}", f"--processes={count}"]
    command += [f"--address={names[0].rpartition('@')[2]}", f"--port={job.launch.port}", f"--id={job.train.name}"]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([*command, 'llama_train', *job.arguments])}"


def start(commands: dict[str, str]) -> int:
    """Run the commands by ssh, all at once; return the greatest status. Ctrl-C reaches the ranks through a terminal."""
    running = {
        name: subprocess.Popen(["ssh", "-tt", "-o", "BatchMode=yes", name, command], stdin=subprocess.DEVNULL)
        for name, command in commands.items()
    }
    statuses = {}
    try:
        for name, process in running.items():
            statuses[name] = process.wait()
    finally:
        for process in running.values():
            process.terminate()
    for name, status in statuses.items():
        if status:
            print(f"{name}: status {status}" + (": ssh could not connect" if status == 255 else ""), file=sys.stderr)
    return max(status if status >= 0 else 128 - status for status in statuses.values())
