"""`python -m launch.hold MODULE ...`: run a module of Python, and hold SIGUSR1 back until it is ready to hear it.

SLURM sends SIGUSR1 ahead of the time limit whatever a process is doing, and one that still imports would die of it. A
blocked signal stays blocked across exec, and waits: llama-train lets it through when it has a handler
(llama_train/survive/signals.py), launch.torchrun hands it on to its ranks. One that comes before even this program
runs still ends a rank, with a status by which the job knows that it was asked to stop (launch/attempts.py).
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.execv(sys.executable, [sys.executable, "-u", "-m", *sys.argv[1:]])
