"""`python -m launch.ray_node ... ARGUMENTS`: one node of a Ray cluster that lives for one run of llama-data.

slurm/data.sbatch starts it on every node of a job. On node 0 Ray's head begins, then llama-data runs as a user of the
cluster; the others join, whenever they are ready, and leave when the head has gone. Ray's servers answer only who has
the token, which is in a file that nobody else can read; node 0 makes it and removes it.
"""

import argparse
import contextlib
import importlib.metadata
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.engines.ray import OBJECT_STORE_BYTES
from launch.address import address
from llama_foundation.errors import ConfigError, RunError, exit_status

MEETING_SECONDS = 600
"""How long a node waits for the head; nodes of a large job do not start at the same moment."""
OLDEST_RAY = (2, 52)
"""The first version with token authentication; an older one would let everybody in who reaches the node."""
_PATIENCE = 3  # looks, two seconds apart, before a head that does not answer is gone


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.ray_node", description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True, help="of node 0")
    parser.add_argument("--port", type=int, required=True, help="of node 0's head")
    parser.add_argument("--interface", help="that this node's Ray is reached at")
    parser.add_argument("--files", type=Path, required=True, help="a directory that all nodes share")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="llama-data's own")
    options = parser.parse_args()
    check_ray()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # scancel: leave nothing behind
    job = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    token = options.files / f"ray-token-{job}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    environment.pop("RAY_AUTH_TOKEN", None)  # it would be used instead of the file
    head = f"{options.address}:{options.port}"
    here = Path(tempfile.gettempdir()) / f"ray-{job}"
    own_directory(here)
    command = [*(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--temp-dir={here}")]
    command += ["--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += [f"--num-cpus={os.environ['SLURM_CPUS_ON_NODE']}", "--include-log-monitor=false"]
    if os.environ["SLURM_NODEID"] == "0":
        command += ["--head", f"--node-ip-address={options.address}", f"--port={options.port}"]
        command += ["--include-dashboard=false"]
        pipeline = [sys.executable, "-m", "data_pipeline", *options.arguments, f"engine.address={head}"]
        with token_file(token), ray(command, environment, here) as started:
            wait_for_head(options.address, options.port, started, here)
            status = subprocess.run(pipeline, env=environment).returncode
        return status if status >= 0 else 128 - status
    wait_for_head(options.address, options.port, None, here)
    own = address(options.interface, alone=False)
    with ray([*command, f"--address={head}", f"--node-ip-address={own}"], environment, here) as started:
        stay(options.address, options.port, started, here)
    return 0


def check_ray() -> None:
    """Refuse a Ray without token authentication.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"{socket.gethostname()}: engine=ray needs Ray: pip install 'llama-train[ray]'; or use engine=array"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_RAY:
        raise ConfigError(
            f"{socket.gethostname()}: Ray {version} has no token authentication, and would run what anybody sends it; "
            "install 2.52 or newer, or use engine=array"
        )


def own_directory(path: Path) -> None:
    """Make a directory for Ray's logs and sockets that nobody else can look into.

    Raises:
        ConfigError: it belongs to somebody else.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid() or path.is_symlink():
        raise ConfigError(
            f"{socket.gethostname()}: {path} belongs to somebody else; set TMPDIR to a directory of yours"
        )


@contextlib.contextmanager
def token_file(path: Path) -> Iterator[None]:
    """While open, `path` holds a new token that only this user can read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def ray(command: list[str], environment: dict[str, str], here: Path) -> Iterator[subprocess.Popen]:
    """While open, Ray runs on this node."""
    with open(here / f"start-{socket.gethostname()}.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:  # there is nothing in them to keep, and some would linger
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(here, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """Return the process ids of the children of `pid`, of theirs, and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(pid, []))
    for each in found:
        found += children.get(each, [])
    return found


def answers(where: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((where, port), timeout=5).close()
    except OSError:
        return False
    return True


def wait_for_head(where: str, port: int, process: subprocess.Popen | None, here: Path) -> None:
    """Wait until the head can be joined.

    Args:
        process: the head itself, on its own node.

    Raises:
        RunError: it has ended, or does not begin in time.
    """
    deadline = time.monotonic() + MEETING_SECONDS
    while not answers(where, port):
        if process is not None and process.poll() is not None:
            raise RunError(f"{socket.gethostname()}: Ray's head did not start: {_last_words(here)}")
        if time.monotonic() > deadline:
            raise RunError(
                f"{socket.gethostname()}: no Ray head at {where}:{port} within {MEETING_SECONDS} s; see what node 0 "
                "says, and whether cluster.interface is a network that joins the nodes"
            )
        time.sleep(1)


def stay(where: str, port: int, process: subprocess.Popen, here: Path) -> None:
    """Return when the head has gone, or warn that this node has left before it: the others do its tasks."""
    missed = 0
    while missed < _PATIENCE:
        if process.poll() is not None and answers(where, port):
            print(f"warning: {socket.gethostname()} has left the Ray cluster: {_last_words(here)}", file=sys.stderr)
            return
        missed = 0 if answers(where, port) else missed + 1
        time.sleep(2)


def _last_words(here: Path) -> str:
    path = here / f"start-{socket.gethostname()}.log"
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "it said nothing"


if __name__ == "__main__":
    sys.exit(exit_status(main))
