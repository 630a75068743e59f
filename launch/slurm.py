"""`llama-launch slurm`: render slurm/train.sbatch for a job, keep a snapshot, submit it."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2

from launch.attempts import STOP
from launch.config import Job, check_processes
from launch.runs import active_jobs, record_job
from launch.snapshot import copy_code, new_directory, refuse_secrets, snapshot
from llama_foundation.errors import ConfigError, RunError
from llama_train.config import ClusterConfig
from llama_train.config.slurm import SlurmConfig, Tasks

_PACKAGED = Path(__file__).parent / "templates"
CHECKOUT = Path(__file__).parents[1]
TEMPLATES = _PACKAGED if _PACKAGED.is_dir() else CHECKOUT / "slurm"
"""Where the sbatch files are: inside the installed wheel, or at the top of a checkout."""


def slurm(job: Job) -> int:
    """Submit the job, or show what would be submitted.

    Raises:
        ConfigError: a setting is missing or wrong, or SLURM refuses it.
        RunError: there is no SLURM here, or the run cannot be written.
    """
    refuse_secrets(job.arguments)
    count = processes_on_a_node(job)
    counts = node_counts(job, count)
    if "\n" in str(job.directory) or re.search(r"[\s%'\"\\$`]", str(job.directory)):
        raise ConfigError(
            f"output/name={job.directory}: SLURM's log file cannot have such a name; use plain characters"
        )
    if job.launch.dry_run:
        print(render(job, count, counts, None), end="")
        return 0
    require_slurm()
    refuse_second_job(job.directory)
    prepare_directory(job.directory)
    kept = new_directory(job.directory)
    code = copy_code(CHECKOUT, kept / "code") if job.train.cluster.slurm.copy_code else None
    snapshot(kept, job.train, render(job, count, counts, code), CHECKOUT)
    number = submit(kept / "train.sbatch", job.train.cluster.slurm)
    record_job(job.directory, number)
    print(f"job {number}: {job.launch.nodes} nodes with {count} processes each")
    print(f"snapshot: {kept}")
    for command, what in (("status", "where it is"), ("logs", "what it prints"), ("stop", "checkpoint, and end")):
        print(f"llama-launch {command:6} run={job.directory}    # {what}")
    return 0


def node_counts(job: Job, processes_per_node: int) -> list[int]:
    """Return how many of the nodes asked for the configuration can use, ascending: the least, the most, and between.

    Raises:
        ConfigError: it cannot use the least or the most.
    """
    low, high = job.launch.node_range()
    if low < high and job.train.cluster.slurm.tasks is Tasks.rank:
        # With --ntasks-per-node sbatch takes no more nodes than one node has tasks (seen in SLURM 22.05).
        raise ConfigError(
            f"nodes={job.launch.nodes}: SLURM gives a range of nodes to one task per node only; use "
            "cluster.slurm.tasks=node, or a number of nodes"
        )
    for nodes in sorted({low, high}):
        check_processes(job.train, nodes, processes_per_node)
    between = []
    for nodes in range(low + 1, high):
        with contextlib.suppress(ConfigError):
            check_processes(job.train, nodes, processes_per_node)
            between.append(nodes)
    return sorted({low, *between, high})


def refuse_second_job(run: Path) -> None:
    """Refuse to submit a run that has a job already: the second would wait for the first one's lock, and fail.

    Raises:
        ConfigError: with that job's id.
    """
    for row in active_jobs(run):
        raise ConfigError(f"{run} has job {row.job} already ({row.state}); llama-launch stop run={run} ends it")


def prepare_directory(run: Path) -> None:
    """Make the run directory, which only its owner and group may write in.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        (run / "logs").mkdir(parents=True, exist_ok=True)
        for directory in (run, run / "logs"):
            directory.chmod(directory.stat().st_mode & ~0o002)
        (run / STOP).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"output/name={run} cannot be written: {error.strerror}; choose another output") from error


def require_slurm() -> None:
    """Refuse to go on where there is nothing to submit to."""
    if shutil.which("sbatch") is None:
        raise RunError(
            "there is no SLURM on this machine (no sbatch in PATH); submit from a login node of the cluster, or use "
            "llama-launch local, or hosts"
        )


def processes_on_a_node(job: Job) -> int:
    """Return how many ranks a node has; the machine that submits says nothing of the nodes, so it has to be given."""
    cluster = job.train.cluster
    count = job.launch.processes_per_node or cluster.processes_per_node or cluster.slurm.gpus_per_node
    if count is None:
        raise ConfigError(
            "how many processes does a node have? Give processes_per_node=8, or a cluster=... that sets "
            "cluster.processes_per_node"
        )
    if cluster.processes_per_node not in (None, count):  # the ranks check tensor groups against the cluster's number
        raise ConfigError(
            f"processes_per_node={count}, but cluster.processes_per_node={cluster.processes_per_node}; change that one"
        )
    return count


def render(job: Job, processes_per_node: int, counts: list[int], code: Path | None) -> str:
    """Return the batch script of a job.

    Args:
        counts: of `node_counts`.
        code: the copy that the nodes run; None: what they find in the working directory or have installed.
    """
    settings = job.train.cluster.slurm
    return render_template(
        "train.sbatch",
        job.train.cluster,
        name=re.sub(r"[^\w.=,-]", "-", job.train.name),
        nodes=job.launch.nodes,
        node_counts=counts,
        code=code or "",
        processes_per_node=processes_per_node,
        tasks=settings.tasks.name,
        tasks_per_node=1 if settings.tasks is Tasks.node else processes_per_node,
        gpus=processes_per_node if job.train.cluster.device == "cuda" else 0,
        run=str(job.directory),
        container=container_options(job, settings),
        rank_python=settings.container_python if settings.container_image else settings.python or sys.executable,
        warning_seconds=settings.warning_seconds,
        requeue=settings.requeue,
        attempts_without_progress=settings.attempts_without_progress,
        arguments=absolute_output(job),
    )


def render_template(template: str, cluster: ClusterConfig, **values: Any) -> str:
    """Fill in a file of slurm/: `values`, and what every job on `cluster` needs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    settings = cluster.slurm
    return environment.get_template(template).render(
        options=sbatch_options(settings),
        directory=str(Path.cwd()),
        python=settings.python or sys.executable,
        setup=settings.setup,
        interface=cluster.interface or "",
        first_port=settings.first_port,
        port_count=settings.port_count,
        **values,
    )


def absolute_output(job: Job) -> list[str]:
    """llama-train's arguments, with the directory that was resolved here: the nodes may start elsewhere."""
    others = [argument for argument in job.arguments if argument.partition("=")[0] not in ("output", "name")]
    return [*others, f"output={job.directory.parent}", f"name={job.directory.name}"]


def sbatch_options(settings: SlurmConfig) -> list[str]:
    """Return the #SBATCH options that the settings ask for."""
    pairs = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "reservation": settings.reservation,
        "constraint": settings.constraint,
        "time": settings.time,
        "gpus-per-node": settings.gpus_per_node,
        "cpus-per-task": _cpus_per_task(settings),
        "mem": settings.memory,
    }
    given = [f"--{name}={value}" for name, value in pairs.items() if value is not None]
    return [*given, *(["--exclusive"] if settings.exclusive else []), *settings.options]


def _cpus_per_task(settings: SlurmConfig) -> int | None:
    if settings.cpus_per_node is None or settings.tasks is Tasks.node:
        return settings.cpus_per_node
    ranks = settings.gpus_per_node or 1
    return max(settings.cpus_per_node // ranks, 1)


def container_options(job: Job, settings: SlurmConfig) -> str:
    """Return srun's options for the pyxis plugin with a blank behind them, empty without an image."""
    if settings.container_image is None:
        return ""
    here = Path.cwd()
    mounts = [f"{job.directory}:{job.directory}", f"{here}:{here}", *settings.container_mounts]
    options = [
        f"--container-image={settings.container_image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={here}",
    ]
    return shlex.join(options) + " "


def submit(script: Path, settings: SlurmConfig) -> str:
    """Hand a batch script to SLURM and return the job id.

    Raises:
        ConfigError: SLURM refuses it; its words, and the setting they are about.
    """
    for option in ("--test-only", "--parsable"):  # without the first, SLURM queues some jobs that can never start
        answer = subprocess.run(["sbatch", option, str(script)], capture_output=True, text=True, env=_environment())
        if answer.returncode:
            break
    else:
        return answer.stdout.strip().partition(";")[0]
    words = "; ".join(
        line.removeprefix("sbatch: error: ").removeprefix("allocation failure: ") for line in answer.stderr.splitlines()
    )
    raise ConfigError(f"SLURM does not take the job: {words}{_about(words, settings)}")


def _environment() -> dict[str, str]:
    """Without the variables of a job that this command may run in: the new job would inherit its limits."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return ours | {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in os.environ}


def _about(words: str, settings: SlurmConfig) -> str:
    known = {
        "account": ("account", "sacctmgr show associations user=$USER lists yours"),
        "partition": ("partition", "sinfo lists the partitions"),
        "qos": ("qos", "sacctmgr show qos lists them"),
        "time limit": ("time", "sinfo -o '%P %l' shows the limits"),
        "generic resource": ("gpus_per_node", "sinfo -o '%P %G' shows what nodes have"),
        "node configuration": ("nodes", "sinfo -Nel shows how many there are and what they have"),
        "node count": ("nodes", "sinfo shows how many there are"),
    }
    for word, (name, help) in known.items():
        if word in words.lower():
            value = getattr(settings, name, None)
            setting = f"cluster.slurm.{name}={value}" if hasattr(settings, name) else name
            return f" ({setting}; {help})"
    return ""
