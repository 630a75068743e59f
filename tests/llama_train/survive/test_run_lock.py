import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llama_foundation.errors import RunError
from llama_train.survive.lock import RunLock

HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from llama_train.survive.lock import RunLock
    with RunLock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def holder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.timeout(60)
def test_a_second_run_is_refused_by_host_and_process_until_the_first_is_killed(tmp_path, holder):
    expected = rf"{re.escape(str(tmp_path))} is in use by process {holder.pid} on {re.escape(socket.gethostname())}, "
    with pytest.raises(RunError, match=expected + r"which started at 20.*give this run another name="):
        with RunLock(tmp_path):
            pytest.fail("both hold the lock")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock").read_text()


def test_the_lock_is_free_after_its_block_also_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="x"):
        with RunLock(tmp_path / "new"):
            raise ValueError("x")
    with RunLock(tmp_path / "new"):
        pass


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path):
        pass
    assert "this file system has no locks" in capsys.readouterr().err
