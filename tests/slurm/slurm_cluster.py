"""A real SLURM of several nodes on this machine, for tests.

Every node is a slurmd in namespaces of its own (unshare(1): host name, mounts, process ids), so that a node can be
killed with everything on it; all of them talk on the loopback interface. Nothing of the machine's own SLURM, munge or
/etc/hosts is touched: everything is in one directory.

Run as a program it stays up until ctrl-c: python tests/slurm/slurm_cluster.py DIRECTORY [NODES]
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "util-linux")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
CPUS, MEGABYTES = 8, 8000  # of a node, as SLURM is told; it does not check

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again after cred_expire seconds; 120 by default.
AuthInfo=socket={directory}/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
PlugStackConfig={directory}/plugstack.conf
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdSpoolDir={directory}/spool/%n
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmdLogFile={directory}/log/slurmd.%n.log
# A dead node is noticed after about twice SlurmdTimeout.
SlurmctldTimeout=10
SlurmdTimeout=8
MessageTimeout=5
KillWait=20
MinJobAge=3600
ReturnToService=2
JobRequeue=1
EpilogMsgTime=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
JobCompType=jobcomp/none
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={directory}/munge.sock
AccountingStoragePort={port}
AccountingStorageEnforce=associations
"""
DATABASE_DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={directory}/log/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
GRANTS = (
    "create database slurm_acct_db; create user 'slurm'@'localhost' identified by 'slurm'; "
    "create user 'slurm'@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct_db.* to 'slurm'@'localhost'; "
    "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
)


def missing(accounting: bool) -> list[str]:
    """Return the programs that are not installed."""
    os.environ["PATH"] += "" if "/usr/sbin" in os.environ["PATH"].split(":") else ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ()) if shutil.which(name) is None]


def install(accounting: bool) -> str | None:
    """Install Debian's packages where something is missing; return why the cluster cannot run here, None if it can."""
    if os.geteuid() != 0:
        return "a SLURM with nodes of its own needs root (namespaces)"
    if not missing(accounting):
        return None
    if shutil.which("apt-get") is None:
        return f"no apt-get to install {', '.join(missing(accounting))} with"
    packages = PACKAGES + (ACCOUNTING_PACKAGES if accounting else ())
    policy = Path("/usr/sbin/policy-rc.d")  # 101: the packages' own services are not started
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            got = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, timeout=240)
    finally:
        if ours:
            policy.unlink()
    return f"apt-get install {' '.join(packages)} failed: {got.stderr[-300:]}" if missing(accounting) else None


@dataclass
class Cluster:
    """A running cluster; `environment` is what its commands need."""

    directory: Path
    nodes: int
    port: int
    accounting: bool
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.directory / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    @property
    def unshared(self) -> Path:
        """A directory of the login node that the nodes do not see."""
        return self.directory / "unshared"

    @property
    def half_shared(self) -> Path:
        """A directory that all but the last node see."""
        return self.directory / "half-shared"

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """Run a command of SLURM, or one that calls some."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def start(self, name: str, *command: str) -> None:
        """Start a daemon."""
        with open(self.directory / "log" / f"{name}.out", "a") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def start_node(self, number: int) -> None:
        """Start node n<number>, also after `kill_node`."""
        name, hosts = f"n{number}", self.directory / f"hosts.n{number}"
        names = " ".join(f"n{each}" for each in range(1, self.nodes + 1))
        # its own name first: that is what it calls itself
        hosts.write_text(f"127.0.0.1 {name}\n{Path('/etc/hosts').read_text()}\n127.0.0.1 {names}\n")
        (self.directory / "spool" / name).mkdir(parents=True, exist_ok=True)
        hidden = [self.unshared, *([self.half_shared] if number == self.nodes else [])]
        inside = (
            f"hostname {name}; mount --bind {hosts} /etc/hosts; "
            f"for each in {' '.join(map(str, hidden))}; do mount -t tmpfs -o ro none $each; done; "
            f"echo {number * 3000} > /proc/sys/kernel/ns_last_pid; "
            f"slurmd -D -N {name} -f {self.directory}/slurm.conf & trap 'kill $!' TERM; wait $!; wait $!"
        )
        namespaces = ["unshare", "-u", "-m", "-p", "-f", "--kill-child=KILL", "--mount-proc"]
        self.start(name, *namespaces, "bash", "-c", inside)

    def kill_node(self, name: str) -> None:
        """End a node and everything on it at once, as a power cut does."""
        self.processes[name].kill()
        self.processes[name].wait()

    def state(self, job: str) -> str:
        """Return the state of a job, in scontrol's words."""
        shown = self.run("scontrol", "show", "job", job).stdout
        return shown.partition("JobState=")[2].partition(" ")[0]

    def log(self) -> str:
        """Return the end of the controller's log, for messages."""
        path = self.directory / "log" / "slurmctld.log"
        return path.read_text()[-2000:] if path.exists() else "the controller has not started"

    def stop(self) -> None:
        """End all daemons, jobs first."""
        if "slurmctld" in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run("scancel", "--user=root", timeout=5)
                wait_for(
                    lambda: not self.run("squeue", "-h", timeout=5).stdout.strip(), 10, "jobs to end", strict=False
                )
        for name in reversed(list(self.processes)):
            process = self.processes[name]
            if process.poll() is None and name.startswith("n"):
                process.kill()  # a node goes with its namespace
            elif process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(condition: Callable[[], object], seconds: float, what: str, strict: bool = True) -> bool:
    """Wait until `condition()` is true.

    Raises:
        TimeoutError: it is not within `seconds`, and `strict`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            if strict:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")
            return False
        time.sleep(0.2)
    return True


@contextlib.contextmanager
def cluster(directory: Path, nodes: int, accounting: bool = False) -> Iterator[Cluster]:
    """Start a cluster of nodes n1, n2, ... in `directory` and end it afterwards."""
    here = Cluster(directory, nodes, _free_ports(nodes + 4), accounting)
    for part in ("state", "spool", "log", here.unshared.name, here.half_shared.name):
        (directory / part).mkdir(parents=True, exist_ok=True)
    try:
        _start(here)
        yield here
    finally:
        here.stop()


def _start(here: Cluster) -> None:
    directory, host = here.directory, socket.gethostname().partition(".")[0]
    database, database_port = here.port + 1, here.port + 2
    (directory / "plugstack.conf").write_text("")
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    node_lines = [
        f"NodeName=n{number} NodeAddr=127.0.0.1 Port={here.port + 3 + number} Sockets=1 CoresPerSocket={CPUS} "
        f"ThreadsPerCore=1 RealMemory={MEGABYTES} State=UNKNOWN"
        for number in range(1, here.nodes + 1)
    ]
    accounting = ACCOUNTING.format(directory=directory, port=database) if here.accounting else ""
    values = {"host": host, "port": here.port, "directory": directory, "nodes": "\n".join(node_lines)}
    (directory / "slurm.conf").write_text(CONFIGURATION.format(**values, accounting=accounting))
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    sock = directory / "munge.sock"
    options = {"key-file": key, "socket": sock, "pid-file": directory / "munged.pid"}
    options |= {"log-file": directory / "log" / "munged.log", "seed-file": directory / "munge.seed"}
    here.start("munged", "munged", "-F", "-f", *(f"--{name}={value}" for name, value in options.items()))
    wait_for(lambda: here.run("munge", "-S", str(sock), "-n").returncode == 0, 10, "munged")
    if here.accounting:
        _start_accounting(here, host, database, database_port)
    here.start("slurmctld", "slurmctld", "-D", "-f", f"{directory}/slurm.conf")
    wait_for(lambda: "is UP" in here.run("scontrol", "ping").stdout, 20, f"slurmctld: {here.log()}")
    for number in range(1, here.nodes + 1):
        here.start_node(number)
    idle = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
    wait_for(lambda: len(here.run(*idle).stdout.split()) == here.nodes, 30, f"{here.nodes} idle nodes")


def _start_accounting(here: Cluster, host: str, port: int, database_port: int) -> None:
    directory = here.directory
    data, sock = directory / "mysql", directory / "mysql.sock"
    here.run(
        *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"),
        "--auth-root-authentication-method=normal",
    ).check_returncode()
    here.start(
        *("mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}"),
        *(f"--pid-file={directory}/mysql.pid", "--bind-address=127.0.0.1", f"--port={database_port}"),
        *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"),
    )
    client = ["mariadb", "--no-defaults", "-uroot", "-S", str(sock), "-e"]
    wait_for(lambda: here.run(*client, "select 1").returncode == 0, 30, "mariadbd")
    here.run(*client, GRANTS).check_returncode()
    path = directory / "slurmdbd.conf"
    path.touch(mode=0o600)
    values = {"directory": directory, "host": host, "port": port, "database_port": database_port}
    path.write_text(DATABASE_DAEMON.format(**values))
    here.start("slurmdbd", "slurmdbd", "-D")
    wait_for(lambda: here.run("sacctmgr", "-i", "list", "cluster").returncode == 0, 30, "slurmdbd")
    for what in (
        ["cluster", "loopback"],
        ["account", "default", "Cluster=loopback"],
        ["user", "root", "account=default"],
    ):
        here.run("sacctmgr", "-i", "add", *what)


def _free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody listens on now."""
    for first in range(16800, 18800, 40):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports between 16800 and 18800")


if __name__ == "__main__":
    with cluster(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 4) as running:
        print(f"export SLURM_CONF={running.directory}/slurm.conf", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
