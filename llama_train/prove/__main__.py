"""`llama-prove`: this configuration, shrunk, in several layouts against one process, in float64.

Exit status 0 when every layout gives one process' loss, gradients and weights; 1 when one does not.
"""

import dataclasses
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import ActivationCheckpointing, AttentionName, Float8, Packing, TrainConfig
from llama_train.prove.harness import BATCH_SIZE, Case, Outcome, compare, make_shards, run_case
from llama_train.prove.shrink import SEQUENCE_LENGTH, STEPS, shrink
from llama_train.prove.stretch import FAULTS


@dataclass
class ProveSettings:
    """What to prove and how to say it."""

    json: bool = False  # print one JSON object instead of a table
    fault: str | None = None  # plant a known fault, to see that the proof notices it


@dataclass
class ProveConfig(TrainConfig):
    """A training configuration, and how to prove it."""

    prove: ProveSettings = field(default_factory=ProveSettings)

    def check(self) -> None:
        super().check()
        if self.prove.fault is not None and self.prove.fault not in FAULTS:
            raise ConfigError(f"prove.fault={self.prove.fault} is not known; use one of {', '.join(FAULTS)}")


SWITCHED_OFF = {
    "attention": AttentionName.sdpa,
    "activation_checkpointing": ActivationCheckpointing.none,
    "loss_chunk": 0,
    "compile": False,
    "float8": Float8.none,
}
"""The engine's settings under which nothing is computed in another way than the model is written."""

REFERENCE = Case("1 process", ((1, STEPS),), micro_batch_size=BATCH_SIZE)
CASES = (
    Case("1 process, 8 micro-batches", ((1, STEPS),), micro_batch_size=1),
    Case("FSDP2 on 2", ((2, STEPS),), micro_batch_size=4, layout={"data_shard": 2}),
    Case("FSDP2 on 2, 4 micro-batches", ((2, STEPS),), micro_batch_size=1, layout={"data_shard": 2}),
    Case("FSDP2 on 4", ((4, STEPS),), micro_batch_size=2, layout={"data_shard": 4}),
    Case("HSDP 2 × 2", ((4, STEPS),), micro_batch_size=2, layout={"data_replicate": 2, "data_shard": 2}),
    Case("resume: 2 → 4 → 1", ((2, 6), (4, 13), (1, STEPS)), micro_batch_size=1, layout={"data_shard": -1}),
)
"""Every way of running that this version has; each must do what `REFERENCE` does."""


def prove(config: ProveConfig) -> int:
    """Run the reference and every case, print the table, return 0 if all pass and 1 if not."""
    console = Console(stderr=config.prove.json)
    training = TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)})
    small = shrink(training, BATCH_SIZE)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="llama-prove-") as temporary:
        work = Path(temporary)
        packed_for = SEQUENCE_LENGTH if small.data.packing is Packing.best_fit else None
        tokens = 2 * STEPS * BATCH_SIZE * SEQUENCE_LENGTH
        make_shards(work / "shards", small.model.vocab_size, tokens, packed_for=packed_for)
        small.data.shards = str(work / "shards")
        console.print(
            f"Proving {config.model.name} shrunk to {small.model.layers} layers of width {small.model.hidden_size}: "
            f"{STEPS} steps in float64 against one process"
        )
        # The reference has no switch on that a case could share a fault with.
        engine = dataclasses.replace(small.engine, **SWITCHED_OFF)
        plain = dataclasses.replace(small, engine=engine, layout=type(small.layout)())
        run_case(REFERENCE, plain, work / "reference")
        for case in CASES:
            with console.status(case.name):
                started = time.monotonic()
                run_case(case, small, work / case.name, config.prove.fault)
                outcomes.append(compare(case, work / case.name, work / "reference", time.monotonic() - started))
    passed = all(outcome.passed for outcome in outcomes)
    if config.prove.json:
        rows = [dataclasses.asdict(outcome) | {"passed": outcome.passed} for outcome in outcomes]
        print(json.dumps({"model": config.model.name, "passed": passed, "cases": rows}, indent=2))
    else:
        console.print(_table(outcomes))
        console.print("every layout does what one process does" if passed else "[bold red]not proven[/]")
    return 0 if passed else 1


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading in ("layout", "loss", "gradient", "worst gradient", "norm", "weights", "s", ""):
        table.add_column(heading, justify="left" if heading in ("layout", "worst gradient", "") else "right")
    for o in outcomes:
        table.add_row(
            o.case,
            f"{o.loss_difference:.0e}",
            f"{o.gradient_difference:.0e}",
            o.worst_parameter.removeprefix("model.").removesuffix(".weight"),
            f"{o.grad_norm_difference:.0e}",
            f"{o.weight_difference:.0e}",
            f"{o.seconds:.0f}",
            "[green]pass[/]" if o.passed else "[bold red]FAIL[/]",
        )
    return table


def main() -> int:
    return compose.main("prove", ProveConfig, prove)


if __name__ == "__main__":
    sys.exit(main())
