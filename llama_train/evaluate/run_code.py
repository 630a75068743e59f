"""Running a program that a model wrote, in a process of its own with limits.

The limits keep a bad program from taking the machine's time, memory or disk. They are no sandbox: the program may
read files and use the network as this user may. Run it where there is nothing to lose.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

SECONDS = 10.0
"""Of one program, by the clock: HumanEval's own harness gives 3, on a machine with nothing else to do."""

MEMORY_BYTES = 4 * 2**30
"""Address space of one program (the limit of HumanEval's own harness is optional)."""

FILE_BYTES = 2**24
"""Of a file that a program writes."""

# Only here does the child read the program: its limits are then set, and no thread of ours is copied into it.
_CHILD = """
import os, resource, sys
for name, most in (("AS", int(sys.argv[1])), ("FSIZE", int(sys.argv[2])), ("CPU", int(sys.argv[3])), ("CORE", 0)):
    limit = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(limit)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (most, most))
program = sys.stdin.read()
try:
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
except BaseException:
    os._exit(1)
os._exit(0)
"""


def passes(program: str, seconds: float = SECONDS) -> bool:
    """Return whether `program` runs to its end: no exception, no exit, within its time and memory.

    It sees an empty directory, no environment and no input; what it prints is thrown away.
    """
    with tempfile.TemporaryDirectory() as directory:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, str(MEMORY_BYTES), str(FILE_BYTES), str(int(seconds) + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={},
            start_new_session=True,
        )
        try:
            child.communicate(program.encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and what it may have started
            child.wait()
        return child.returncode == 0
