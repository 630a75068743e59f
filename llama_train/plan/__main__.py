"""`llama-plan`: what fits, how fast, how long and what it costs, before a GPU is touched.

    llama-plan experiment=llama2_70b cluster=a100x8 nodes=256

Exit status 0 when the layout fits, 1 when it does not.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from llama_foundation import compose
from llama_foundation.errors import ConfigError
from llama_train.config import EngineName, LayoutConfig
from llama_train.engine.deepspeed.checks import check_deepspeed
from llama_train.parallel.layout import AXES
from llama_train.plan import page, recipe
from llama_train.plan.calibrate import correction
from llama_train.plan.faults import expected_goodput
from llama_train.plan.hardware import Hardware, hardware_of
from llama_train.plan.search import Candidate, candidates, evaluate, ranked, why_not
from llama_train.plan.settings import PlanConfig
from llama_train.plan.speed import step_time
from llama_train.plan.write import write_json, write_layout


def plan(config: PlanConfig) -> int:
    """Print the plan; return 0 if the layout fits and 1 if not."""
    settings = config.plan
    if settings.tokens is not None:
        config = replace(config, steps=recipe.steps_of_budget(config, settings.tokens))
        config.check()
    if config.engine.name is EngineName.deepspeed:
        check_deepspeed(config)
    hardware = hardware_of(config.cluster)
    devices = _devices(config, hardware)
    stage = recipe.main_stage(config)
    used = recipe.sources(config)  # missing shards are found before the work
    factor, calibrated = correction(config, hardware) if settings.calibrate else (1.0, None)
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, page.WIDTH)
    page.heading(console, config, hardware, devices)
    own = _own_layout(config)
    found, best = [], []
    if settings.search or own is None:
        found = list(candidates(config, devices, hardware))
        best = ranked(found, hardware, settings.margin)
    wanted = config if own is not None else _best(config, found, best, hardware, devices).config
    chosen = evaluate(wanted, devices, hardware, stage)
    console.print(f"{page.settings_line(chosen)}{'' if own is not None else '   (the fastest that fits)'}\n")
    console.print(page.memory_table(chosen, hardware, settings.margin))
    fits = chosen.fits(hardware, settings.margin)
    if not fits:
        console.print(f"[bold red]does not fit[/]: {why_not(chosen, devices, hardware, settings.margin)}")
    if settings.exact:
        _exact(console, chosen, hardware, devices)
    console.print()
    console.print(page.time_table(chosen, stage))
    for line in page.speed_lines(chosen, hardware, stage):
        console.print(line)
    if calibrated:
        corrected = chosen.time.tokens_per_second_per_device * factor
        console.print(f"{calibrated}: [bold]{corrected:,.0f} tokens/s/GPU[/]; the run below is timed by it")
    if settings.search:
        console.print()
        console.print(page.layouts_table(best, settings.margin, settings.top, len(found)))
        _misfits(console, config, found, best, hardware, devices)
    timed = [
        (
            each,
            step_time(chosen.config, chosen.layout, hardware, each.sequence_length, each.batch_size).seconds / factor,
        )
        for each in recipe.stages(config)
    ]
    seconds = sum(each.steps * one for each, one in timed)
    total = recipe.bill(config, settings, hardware.accelerator.watts, devices, seconds)
    console.print()
    console.print(page.run_table(config, timed))
    for line in page.run_lines(config, total, used):
        console.print(line)
    mean_step = seconds / config.steps
    goodput = expected_goodput(settings, devices, mean_step, config.checkpoint.every)
    if goodput is not None:
        for line in page.goodput_lines(config, goodput, total.days):
            console.print(line)
    _files(console, config, chosen, best, timed, total)
    return 0 if fits else 1


def _devices(config: PlanConfig, hardware: Hardware) -> int:
    if config.nodes is not None:
        return config.nodes * hardware.devices_per_node
    layout = config.layout
    needed = layout.pipeline * layout.data_replicate * max(layout.data_shard, 1) * layout.context * layout.tensor
    return needed if layout.data_shard != -1 else max(hardware.devices_per_node, needed)


def _own_layout(config: PlanConfig) -> LayoutConfig | None:
    """Return the layout that was asked for, None where no axis is set."""
    plain = LayoutConfig()
    return config.layout if any(getattr(config.layout, axis) != getattr(plain, axis) for axis in AXES) else None


def _best(
    config: PlanConfig, found: list[Candidate], best: list[Candidate], hardware: Hardware, devices: int
) -> Candidate:
    if best:
        return best[0]
    nodes = devices // hardware.devices_per_node
    if found:
        nearest = min(found, key=lambda each: each.memory.allocated)
        needed = nearest.memory.needed(config.plan.margin) / 2**30
        raise ConfigError(
            f"nodes={nodes}: no layout of {config.model.name} fits into {devices} × {hardware.memory / 2**30:.0f} GiB; "
            f"the nearest needs {needed:.0f} GiB on every device ({page.settings_line(nearest)}). Use more nodes, or "
            "devices with more memory"
        )
    batches = " and ".join(sorted({f"{stage.batch_size:,}" for stage in recipe.stages(config)}))
    raise ConfigError(
        f"nodes={nodes}: no layout divides batches of {batches} sequences over {devices} devices with at most "
        f"{config.model.layers} layers and {config.model.kv_heads} KV heads to cut; use fewer nodes or a larger "
        "data.batch_size"
    )


def _misfits(
    console: Console,
    config: PlanConfig,
    found: list[Candidate],
    best: list[Candidate],
    hardware: Hardware,
    devices: int,
) -> None:
    """Say why the layouts that would be fastest do not fit."""
    fastest = best[0].time.seconds if best else math.inf
    said: set[tuple[int, ...]] = set()
    for candidate in sorted(found, key=lambda each: each.time.seconds):
        layout = candidate.layout
        if candidate.time.seconds >= fastest or len(said) == 3:
            break
        if layout.sizes not in said and not candidate.fits(hardware, config.plan.margin):
            reason = why_not(candidate, devices, hardware, config.plan.margin)
            mode = candidate.config.engine.activation_checkpointing.name
            size = layout.micro_batch_size
            console.print(
                f"faster, but does not fit: {layout.describe()} micro_batch_size={size}, recompute {mode}: {reason}"
            )
            said.add(layout.sizes)


def _exact(console: Console, chosen: Candidate, hardware: Hardware, devices: int) -> None:
    from llama_train.plan.exact import measure

    eager = replace(chosen.config, engine=replace(chosen.config.engine, compile=False))
    layout, memory = chosen.layout, evaluate(eager, devices, hardware, recipe.main_stage(eager)).memory
    rank = memory.pipeline_rank * (devices // layout.pipeline)
    stage = recipe.main_stage(chosen.config)
    micro_batches = stage.batch_size // (layout.data_world * layout.micro_batch_size)
    counted = measure(eager, devices, rank, math.ceil(memory.in_flight), micro_batches)
    states, really = memory.of("weights", "optimizer"), counted.weights + counted.optimizer
    console.print(
        f"exact: rank {rank} of {devices}, built under fake tensors, eager: weights and optimizer "
        f"{really:,} bytes (formula {states:,}); peak {counted.peak / 2**30:.2f} GiB "
        f"(formula {memory.allocated / 2**30:.2f})"
    )


def _files(
    console: Console,
    config: PlanConfig,
    chosen: Candidate,
    best: list[Candidate],
    timed: list[tuple[recipe.Stage, float]],
    total: recipe.Bill,
) -> None:
    settings = config.plan
    if settings.write:
        winner = best[0] if best else chosen
        write_layout(winner, Path(settings.write))
        console.print(f"written: {settings.write}")
    if settings.picture:
        recipe.draw(config, Path(settings.picture))
        console.print(f"drawn: {settings.picture}")
    if settings.json:
        write_json(Path(settings.json), chosen, best, timed, total)
        console.print(f"written: {settings.json}")


def main() -> int:
    return compose.main("plan", PlanConfig, plan)


if __name__ == "__main__":
    sys.exit(main())
