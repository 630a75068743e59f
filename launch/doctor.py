"""`llama-launch doctor`: run launch.health on this machine, or on nodes of SLURM, and show what it says."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from launch.address import free_port
from launch.attempts import job_state
from launch.local import gpus_here, run_to_end
from launch.slurm import render_template, require_slurm, submit
from llama_foundation.errors import ConfigError, RunError
from llama_foundation.files import publish_text
from llama_train.config import ClusterConfig


@dataclass
class DoctorConfig:
    """Which machines to look at."""

    directory: str = MISSING  # that all nodes share, where runs will be
    nodes: int = 1  # 1: this machine, without SLURM
    processes_per_node: int | None = None  # null: as for a run
    full: bool = False  # measure every pair of nodes; takes as many rounds as there are nodes
    megabytes: int = 64  # of an all-reduce
    dry_run: bool = False
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def check(self) -> None:
        for name in ("nodes", "megabytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        self.cluster.check()


def doctor(config: DoctorConfig) -> int:
    """Examine the machines; return 3 if something is wrong with them.

    Raises:
        ConfigError: the directory is missing, or SLURM refuses the job.
        RunError: there is no SLURM here.
    """
    directory = Path(config.directory).absolute()
    if not directory.is_dir():
        raise ConfigError(f"directory={config.directory} is no directory; give the one that runs will be in")
    cluster = config.cluster
    count = config.processes_per_node or cluster.processes_per_node or cluster.slurm.gpus_per_node
    arguments = [str(directory), f"--device={cluster.device}", f"--megabytes={config.megabytes}"]
    arguments += ["--full"] if config.full else []
    if config.nodes == 1:
        count = count or max(gpus_here(cluster.device), 1)
        agent = ["-m", "launch.torchrun", f"--processes={count}", f"--port={free_port()}"]
        return run_to_end([sys.executable, *agent, "launch.health", *arguments])
    if count is None:
        raise ConfigError("how many processes does a node have? Give processes_per_node=8")
    script = render_template(
        *("doctor.sbatch", cluster), nodes=config.nodes, processes_per_node=count, run=directory, arguments=arguments
    )
    if config.dry_run:
        print(script, end="")
        return 0
    require_slurm()
    path = directory / "doctor.sbatch"
    publish_text(path, script)
    job = submit(path, cluster.slurm)
    print(f"job {job}: waiting for {config.nodes} nodes; ctrl-c leaves it in the queue", file=sys.stderr)
    while (state := job_state(job)) in WAITING:
        time.sleep(1)
    log = directory / f"doctor-{job}.out"
    print(log.read_text() if log.is_file() else f"{state}: its nodes could not write {log}", end="")
    return 0 if state == "COMPLETED" else RunError.exit_code


WAITING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
