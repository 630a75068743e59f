"""Cases against one process: what each gave, and whether that is close enough."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_foundation.errors import RunError
from llama_train.config import ActivationCheckpointing, AttentionName, ContextMethod, EngineName, Precision, TrainConfig
from llama_train.prove.case import BATCH_SIZE, NATIVE, Case, Variant, part
from llama_train.prove.harness import FLOAT64, Differences, compare, make_shards, results, run_case
from llama_train.prove.shrink import SEQUENCE_LENGTH, STEPS
from llama_train.prove.zero_sizes import with_shrunk_sizes

FIRST_STEPS = 5
"""How many steps are held against the spread: later ones drift apart by themselves."""

SPREAD_TIMES = 4.0
"""A run in fp32 or bf16 may be so many times as far from one process as that is from itself in other micro-batches."""

ZERO_MOST = 5e-6
"""And with engine=deepspeed in fp32 no further than this: loss in nats, norm of the gradient relative."""

ZERO_BF16 = 1e-2
"""How far loss and norm may be from one process in fp32 with engine=deepspeed in bf16."""

SWITCHED_OFF = {
    "attention": AttentionName.sdpa,
    "activation_checkpointing": ActivationCheckpointing.none,
    "loss_chunk": 0,
    "compile": False,
    "offload": False,
    **NATIVE,
}
"""The engine's settings under which nothing is computed in another way than the model is written."""


@dataclass(frozen=True)
class Outcome:
    """What a case gave; without `differences` it did not get to the end, and `error` says why."""

    case: str
    engine: str
    ranks: int
    device: str
    differences: Differences | None
    limit: Differences
    seconds: float
    error: str = ""
    clipped_steps: int = 0  # whose gradient was longer than optimizer.max_grad_norm

    @property
    def passed(self) -> bool:
        return self.differences is not None and self.differences.within(self.limit)


def outcomes(cases: list[Case], config: TrainConfig, work: Path, fault: str | None = None) -> Iterator[Outcome]:
    """Run the cases one after the other, and what they are compared with before each that needs it first.

    Args:
        config: the shrunk configuration.
        work: a folder to work in.
        fault: planted in every case, never in a reference.

    Raises:
        RunError: a reference failed.
    """
    config = with_shrunk_sizes(_with_shards(config, work), work)
    references: dict[str, tuple[Path, Differences]] = {}
    looked_at: dict[str, set[int]] = {}
    for case in cases:
        looked_at.setdefault(repr(case.variant), set()).update(case.first_steps)
    for case in cases:
        computed = repr(case.variant)
        if computed not in references:
            references[computed] = _reference(case.variant, config, work, tuple(sorted(looked_at[computed])))
        reference, limit = references[computed]
        started = time.monotonic()
        placed = _on_device(config, case)
        differences, error, clipped = None, "", 0
        try:
            places = run_case(case, placed, work, fault)
            differences = compare(places, reference)
            clipped = sum(result["grad_norm"] > config.optimizer.max_grad_norm > 0 for result in results(places))
        except RunError as failure:
            error = str(failure)
        seconds = time.monotonic() - started
        device = placed.cluster.device
        yield Outcome(case.name, case.engine_name, case.world, device, differences, limit, seconds, error, clipped)


def first_steps(cases: list[Case]) -> tuple[list[Case], list[str]]:
    """Return the cases cut to `FIRST_STEPS`, and what is left out: those that are resumed later than that."""
    kept = [case for case in cases if len(case.parts) == 1]
    cut = [dataclasses.replace(c, parts=(dataclasses.replace(c.parts[0], last=FIRST_STEPS),)) for c in kept]
    left_out = [case.name for case in cases if len(case.parts) > 1]
    return cut, [f"not run, for only {FIRST_STEPS} steps are compared: {', '.join(left_out)}"] if left_out else []


def _reference(
    variant: Variant, config: TrainConfig, work: Path, gradient_steps: tuple[int, ...]
) -> tuple[Path, Differences]:
    """Run one process in one micro-batch; return where its results are, and how far others may be from it."""
    # The reference has no switch on that a case could share a fault with.
    plain = dataclasses.replace(config, engine=dataclasses.replace(config.engine, **SWITCHED_OFF))
    precision, zero = config.engine.precision, config.engine.name is EngineName.deepspeed
    last = STEPS if zero or precision is Precision.fp64 else FIRST_STEPS

    def alone(micro_batch_size: int, precision: Precision) -> Path:
        exact = dataclasses.replace(plain, engine=dataclasses.replace(plain.engine, precision=precision))
        layout = {"micro_batch_size": micro_batch_size}
        case = Case("1 process", (part(last, layout),), variant, gradient_steps)
        return run_case(case, _on_device(exact, case), work / "reference")[0]

    whole = variant.batch_size
    if precision is Precision.fp64:
        return alone(whole, precision), FLOAT64
    places = [alone(whole >> halvings, precision) for halvings in range(4) if whole % (1 << halvings) == 0]
    reference = places[0]
    # Micro-batches round the same activations in another order only. Tensor parallelism rounds summands, as far from
    # the others as they are from what is exact: how far that is belongs to the spread. ZeRO does not.
    if not zero:
        places.append(alone(whole, Precision.fp64))
    elif precision is Precision.bf16:
        reference = alone(whole, Precision.fp32)
        places.append(reference)
    pairs = [compare([a], b) for number, a in enumerate(places) for b in places[:number]]
    limit = Differences(
        **{
            name: SPREAD_TIMES * max(getattr(pair, name) for pair in pairs)
            for name in ("loss", "gradient", "norm", "weight")
        }
    )
    if zero and precision is Precision.bf16:
        limit = dataclasses.replace(limit, loss=ZERO_BF16, norm=ZERO_BF16)
    elif zero:
        limit = dataclasses.replace(limit, loss=min(limit.loss, ZERO_MOST), norm=min(limit.norm, ZERO_MOST))
    return reference, limit


def _on_device(config: TrainConfig, case: Case) -> TrainConfig:
    """Return `config` with the device that has room for the case: CUDA where there are as many as ranks.

    A ring outside of bf16 is left to the CPU: CUDA has no kernel for it.
    """
    asked, device = config.cluster.device, "cpu"
    if asked != "cpu":
        import torch

        rings = any(part.layout.get("context_method") is ContextMethod.ring for part in case.parts)
        if rings and config.engine.precision is not Precision.bf16:
            device = "cpu"
        elif torch.cuda.device_count() >= case.world:
            device = "cuda"
        elif asked == "cuda":
            raise RunError(
                f"cluster.device=cuda has {torch.cuda.device_count()} devices for {case.world} ranks; use "
                "cluster.device=cpu, or auto to take devices only where there are enough"
            )
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, device=device))


def _with_shards(config: TrainConfig, work: Path) -> TrainConfig:
    tokens = 3 * STEPS * BATCH_SIZE * SEQUENCE_LENGTH
    if not (work / "shards").exists():
        make_shards(work / "shards", config.model.vocab_size, tokens, packed_for=SEQUENCE_LENGTH)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(work / "shards")))
