"""`llama-prove`: this configuration, shrunk, in several layouts against one process, in float64.

Exit status 0 when every layout gives one process' loss, gradients and weights; 1 when one does not.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_foundation.files import publish_text
from llama_train.config import EngineName, Precision, TrainConfig
from llama_train.engine.deepspeed.checks import check_deepspeed, check_installed
from llama_train.engine.deepspeed.config_file import read_config_file
from llama_train.prove.case import Case, fault_applies
from llama_train.prove.matrix import ROOM, full_cases, reduced_cases
from llama_train.prove.own import own_cases
from llama_train.prove.proof import Outcome, first_steps, outcomes
from llama_train.prove.settings import Matrix, ProveConfig
from llama_train.prove.shrink import Room, room_of, shrink, shrink_layout
from llama_train.prove.stretch import FAULTS
from llama_train.prove.table import HEADING, as_json, markdown, row, tolerance, versions
from llama_train.prove.zero import always_clipped, zero_cases


def prove(config: ProveConfig) -> int:
    """Run one process and every case, print a row for each, return 0 if all pass and 1 if not."""
    settings = config.prove
    console = Console(stderr=settings.json, highlight=False, soft_wrap=True)
    small, cases, notes = choose(config)
    shrunk = f"{small.model.layers} layers of width {small.model.hidden_size}"
    steps = cases[0].parts[-1].last
    console.print(
        f"Proving {config.model.name} shrunk to {shrunk}: {len(cases)} cases of {steps} steps in "
        f"{config.precision.name} against one process"
    )
    if settings.fault is not None:
        console.print(f"planted: {settings.fault}: {FAULTS[settings.fault]}")
    for note in notes:
        console.print(note)
    console.print(f"may be off by: {tolerance(small)}")
    console.print(HEADING, markup=False)
    started = time.monotonic()
    done = []
    with tempfile.TemporaryDirectory(prefix="llama-prove-") as temporary:
        running = outcomes(cases, small, Path(temporary), settings.fault)
        for case in cases:
            with console.status(case.name) if console.is_terminal else contextlib.nullcontext():
                outcome = next(running)
            done.append(outcome)
            console.print(row(outcome), style=None if outcome.passed else "bold red", markup=False)
            if outcome.error:
                console.print(outcome.error, markup=False)
    about = {
        "model": config.model.name,
        "shrunk": shrunk,
        "matrix": settings.matrix.name,
        "engine": config.engine.name.name,
        "precision": config.precision.name,
        "tolerance": tolerance(small),
        "device": " and ".join(sorted({outcome.device for outcome in done})),
        "seconds": round(time.monotonic() - started, 1),
        **versions(config.engine.name),
    }
    return _conclude(console, config, done, about, notes)


def choose(config: ProveConfig) -> tuple[TrainConfig, list[Case], list[str]]:
    """Return the shrunk configuration, the cases, and what people must know of what is not proven.

    Raises:
        ConfigError: the engine cannot do this, the layout does not fit the configuration, or the fault that is to be
            planted changes nothing in any of the cases.
    """
    settings = config.prove
    training = TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)})
    if config.engine.name is EngineName.deepspeed:
        small, cases, notes = _choose_zero(training, config)
        more = []
    elif settings.matrix is Matrix.own:
        layouts, notes = shrink_layout(config.layout, settings.ranks)
        small, more = shrink(training, room_of(layouts, training), config.precision)
        cases = own_cases(layouts)
        _check(small, cases)
    else:
        small, notes = shrink(training, ROOM, config.precision)
        more = _compile_seldom(small)
        cases = full_cases(small) if settings.matrix is Matrix.full else reduced_cases(small)
    notes += more
    if config.precision is not Precision.fp64 and config.engine.name is EngineName.native:
        cases, more = first_steps(cases)
        notes += more
    if settings.fault is not None:
        cases = [case for case in cases if fault_applies(settings.fault, case, _tied(case, small))]
        if not cases:
            raise ConfigError(
                f"prove.fault={settings.fault} changes nothing in the cases of prove.matrix={settings.matrix.name} "
                f"({FAULTS[settings.fault]}); use prove.matrix=full, or a layout where it does"
            )
    return small, cases, notes


def _choose_zero(training: TrainConfig, config: ProveConfig) -> tuple[TrainConfig, list[Case], list[str]]:
    check_deepspeed(training)
    check_installed()
    small, notes = shrink(training, Room(layers=2), config.precision)
    small, clipped = always_clipped(small)
    if training.engine.config_file is not None:
        read_config_file(training, accumulation=None)
        if config.prove.matrix is Matrix.own:
            notes.append("engine.config_file: proven with sizes that fit the shrunk model")
        else:
            notes.append("engine.config_file: only in prove.matrix=own")
            small.engine.config_file = None
    if config.prove.matrix is not Matrix.own:
        notes += _compile_seldom(small)
    return small, zero_cases(config.prove.matrix, small), [*notes, *clipped]


def _compile_seldom(small: TrainConfig) -> list[str]:
    """Switch compilation off, and say so, where it was on."""
    if not small.engine.compile:
        return []
    small.engine.compile = False
    return ["engine.compile: only in the cases that say so, for it takes half a minute each"]


def _check(small: TrainConfig, cases: list[Case]) -> None:
    """Refuse a layout that does not fit here, and not in every process of its proof."""
    from llama_train.parallel.resolve import resolve_layout

    for case in cases:
        data = dataclasses.replace(small.data, **case.variant.data)
        for part in case.parts:
            layout = dataclasses.replace(small.layout, **part.layout)
            resolve_layout(dataclasses.replace(small, data=data, layout=layout), part.world)


def _tied(case: Case, small: TrainConfig) -> bool:
    return case.variant.model.get("tied_embeddings", small.model.tied_embeddings)


def _conclude(
    console: Console, config: ProveConfig, done: list[Outcome], about: dict[str, Any], notes: list[str]
) -> int:
    failed = [outcome for outcome in done if not outcome.passed]
    if config.prove.table is not None:
        publish_text(Path(config.prove.table), markdown(done, about, notes))
    if config.prove.json:
        rows = [as_json(outcome) for outcome in done]
        print(json.dumps(about | {"passed": not failed, "notes": notes, "cases": rows}, indent=2))
    minutes, seconds = divmod(round(about["seconds"]), 60)
    if failed:
        console.print(f"[bold red]NOT PROVEN: {len(failed)} of {len(done)} failed[/], {minutes} min {seconds} s")
    else:
        console.print(f"all {len(done)} do what one process does, {minutes} min {seconds} s")
    return 1 if failed else 0


def main() -> int:
    return compose.main("prove", ProveConfig, prove)


if __name__ == "__main__":
    sys.exit(main())
