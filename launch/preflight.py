"""`python -m launch.preflight RUN`, on every node at a job's start: the checks of `doctor` that take no time.

It imports no torch. What it refuses ends the job with status 2 before a rank is started; the versions of the ranks are
compared by llama-train itself.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from launch.gpus import gpu_facts
from llama_foundation.errors import ConfigError, RunError, exit_status

FEWEST_FREE_BYTES = 1 << 30  # logs, metrics and a small checkpoint; assumed
MOST_SKEW_SECONDS = 10.0  # between this node and the file server; assumed


def preflight(run: Path, gpus: int) -> list[str]:
    """Check this node; return warnings.

    Args:
        gpus: how many it needs.

    Raises:
        ConfigError: it does not see the run directory.
        RunError: it has too little space or too few GPUs, or GPUs with memory errors.
    """
    host, warnings = socket.gethostname(), []
    path = run / f".preflight-{host}"
    try:
        path.write_text("")
        skew = time.time() - path.stat().st_mtime
        path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{host}: cannot write in {run} ({error.strerror}); output must be a directory that all nodes share"
        ) from error
    if abs(skew) > MOST_SKEW_SECONDS:
        warnings.append(f"{host}: its clock is {skew:+.0f} s off the file server's")
    free = shutil.disk_usage(run).free
    if free < FEWEST_FREE_BYTES:
        raise RunError(f"{host}: {run} has only {free / 1e9:.2f} GB free; make room")
    found = gpu_facts("index,ecc.errors.uncorrected.volatile.total") if gpus else []
    if len(found) < gpus:
        raise RunError(f"{host}: {len(found)} GPUs, {gpus} needed; see nvidia-smi there, or exclude the node")
    for number, errors in found:
        if errors.isdigit() and int(errors):
            raise RunError(f"{host}: GPU {number} has had {errors} uncorrected memory errors; exclude the node")
    return warnings


def main() -> int:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asked to stop: `attempts begin` will see it
    parser = argparse.ArgumentParser(prog="python -m launch.preflight", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args()
    os.umask(0o022)
    for warning in preflight(options.run, options.gpus):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
