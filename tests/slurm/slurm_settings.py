"""The run that the tests of this directory submit."""

from pathlib import Path

VOCABULARY = 101


def settings_for(shards: Path, output: Path) -> list[str]:
    """A run of 12 steps in output/run."""
    return [
        "cluster=slurm_loopback",
        "model=tiny",
        f"model.vocab_size={VOCABULARY}",
        "model.context=32",
        f"data.shards={shards}",
        "data.sequence_length=32",
        "data.batch_size=4",
        "optimizer.learning_rate=1e-2",
        "steps=12",
        "checkpoint.every=4",
        "logging.report=false",
        f"output={output}",
        "name=run",
    ]
