"""`llama-launch data` and `llama-launch evaluate`: llama-data and llama-evaluate as SLURM jobs.

The pipeline runs as a job array of workers that share the output directory, or as one job on a Ray cluster of its own.
None of them decides about requeueing: what is finished is kept, and a job that starts again goes on.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.config import DataPipelineConfig, EngineName
from launch.slurm import render_template, require_slurm, submit
from launch.snapshot import refuse_secrets
from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_foundation.files import publish_text
from llama_train.config import ClusterConfig
from llama_train.evaluate.__main__ import EvaluateConfig

TEMPLATES = {EngineName.array: "data-array.sbatch", EngineName.ray: "data.sbatch"}


@dataclass
class BatchConfig:
    """Where the command runs; everything else on the command line is its own."""

    nodes: int = 1  # array: workers of one node each; ray: of one cluster
    dry_run: bool = False
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def check(self) -> None:
        if self.nodes < 1:
            raise ConfigError(f"nodes={self.nodes} must be at least 1")
        self.cluster.check()


def data(arguments: list[str]) -> int:
    """Submit llama-data.

    Raises:
        ConfigError: a setting is wrong, the engine is of one machine, or SLURM refuses the job.
    """
    batch, others = _read(arguments)
    pipeline = compose.compose("data", DataPipelineConfig, others)
    if pipeline.engine.name not in TEMPLATES:
        raise ConfigError(
            f"engine={pipeline.engine.name.value}: use {' or '.join(f'engine={e.value}' for e in TEMPLATES)}"
        )
    if pipeline.engine.address:
        raise ConfigError(
            f"engine.address={pipeline.engine.address}: the job starts a Ray cluster of its own; leave it out"
        )
    if not pipeline.output:
        raise ConfigError("output: not set; give the directory that all nodes share: output=DIR")
    output = Path(pipeline.output).absolute()
    others = [each for each in others if each.partition("=")[0] != "output"]
    return _submit(
        batch, TEMPLATES[pipeline.engine.name], output.with_name(f"{output.name}-jobs"), [*others, f"output={output}"]
    )


def evaluate(arguments: list[str]) -> int:
    """Submit llama-evaluate, with one process per GPU of one node, or as many as `cluster.processes_per_node` says.

    Raises:
        ConfigError: a setting is wrong, or SLURM refuses the job.
    """
    batch, others = _read(arguments)
    config = compose.compose("evaluate", EvaluateConfig, others)
    if batch.nodes > 1:
        raise ConfigError(f"nodes={batch.nodes}: llama-evaluate runs on one node")
    if config.output is None:
        raise ConfigError("output: not set; give the JSON file for the numbers: output=FILE")
    return _submit(batch, "evaluate.sbatch", Path(config.output).absolute().parent / "jobs", others)


def _read(arguments: list[str]) -> tuple[BatchConfig, list[str]]:
    """Split the command line into the launcher's settings, checked, and the command's own."""
    refuse_secrets(arguments)
    mine = [each for each in arguments if each.partition("=")[0].partition(".")[0] in ("nodes", "dry_run", "cluster")]
    return compose.compose("batch", BatchConfig, mine), [each for each in arguments if each not in mine]


def _submit(batch: BatchConfig, template: str, files: Path, arguments: list[str]) -> int:
    """Render, show or submit; the script and the logs are in `files`."""
    cluster = batch.cluster
    script = render_template(
        template,
        cluster,
        nodes=batch.nodes,
        files=files,
        arguments=arguments,
        processes_per_node=cluster.processes_per_node or cluster.slurm.gpus_per_node or 1,
    )
    if batch.dry_run:
        print(script, end="")
        return 0
    require_slurm()
    files.mkdir(parents=True, exist_ok=True)
    path = files / template
    publish_text(path, script)
    print(f"job {submit(path, cluster.slurm)}: script and logs in {files}")
    return 0
