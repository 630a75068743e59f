"""The page that `llama-plan` prints."""

from rich.console import Console
from rich.table import Table

from llama_train.config import AttentionName, LayoutConfig
from llama_train.model.size import forward_flops, model_flops_utilization, parameter_count, training_bytes
from llama_train.plan.accuracy import MEDIAN_ERROR
from llama_train.plan.faults import Goodput
from llama_train.plan.hardware import Hardware
from llama_train.plan.recipe import Bill, SourceUse, Stage, key_steps, rate
from llama_train.plan.search import Candidate
from llama_train.plan.settings import PlanConfig

GIB = 2**30

WIDTH = 112
"""Columns of the page where the terminal has fewer, or there is none."""

SPENT_ON = {
    "products": "matrix products",
    "attention": "attention",
    "memory_bound": "norms, rotations, SwiGLU, loss",
    "recomputation": "activations computed again",
    "tensor_messages": "messages of tensor parallelism",
    "context_messages": "messages of context parallelism",
    "shard_messages": "weights gathered, gradients reduced (not hidden)",
    "pipeline_messages": "messages of the pipeline",
    "bubble": "bubble of the pipeline",
    "optimizer": "clipping and update",
    "waiting": "waiting for the slowest node",
}


def heading(console: Console, config: PlanConfig, hardware: Hardware, devices: int) -> None:
    """Print what is planned, and on what."""
    accelerator = hardware.accelerator
    parameters = parameter_count(config.model)
    states = training_bytes(config.model)
    console.rule(f"[bold]{config.name}[/]")
    console.print(
        f"{config.model.name}: {parameters:,} parameters; weights, gradients and optimizer state "
        f"{states.total / GIB:,.0f} GiB in all"
    )
    console.print(
        f"{devices:,} × {accelerator.name} ({accelerator.memory_gib:g} GiB, {accelerator.bf16_tflops:g} TFLOP/s bf16, "
        f"{accelerator.memory_tb_per_second:g} TB/s), {hardware.devices_per_node} a node, "
        f"{accelerator.link_gb_per_second:g} GB/s inside, {hardware.network / 1e9:g} GB/s between nodes for each"
    )


def settings_line(candidate: Candidate) -> str:
    """Return the layout and its engine switches as settings of llama-train."""
    engine = candidate.config.engine
    parts = [f"layout.{key}={value}" for key, value in layout_settings(candidate).items()]
    parts += [
        f"engine.precision={engine.precision.name}",
        f"engine.compile={str(engine.compile).lower()}",
        f"engine.activation_checkpointing={engine.activation_checkpointing.name}",
    ]
    if engine.reduce_gradients.name != "auto":
        parts.append(f"engine.reduce_gradients={engine.reduce_gradients.name}")
    if engine.reshard_after_forward.name != "auto":
        parts.append(f"engine.reshard_after_forward={engine.reshard_after_forward.name}")
    return " ".join(parts)


def layout_settings(candidate: Candidate) -> dict[str, object]:
    """Return what a layout file says: the axes above 1, and what differs from the default."""
    layout, plain = candidate.layout, LayoutConfig()
    found: dict[str, object] = {
        axis: getattr(layout, axis)
        for axis in ("pipeline", "data_replicate", "data_shard", "context", "tensor")
        if getattr(layout, axis) > 1 or axis == "data_shard"
    }
    found["micro_batch_size"] = layout.micro_batch_size
    for name in ("pipeline_schedule", "stages_per_rank", "layers_per_stage", "context_method", "replicate_kv_heads"):
        value = getattr(layout.config, name)
        if value != getattr(plain, name):
            found[name] = list(value) if name == "layers_per_stage" else getattr(value, "name", value)
    return found


def memory_table(candidate: Candidate, hardware: Hardware, margin: float) -> Table:
    """Return the memory of the fullest rank, term by term."""
    memory = candidate.memory
    where = f"pipeline rank {memory.pipeline_rank}, " if candidate.layout.pipeline > 1 else ""
    held = f"{memory.layers} layers × {memory.in_flight:g} micro-batches"
    table = Table(title=f"Memory of the fullest device ({where}{held}, {memory.moment})", title_justify="left")
    table.add_column("term")
    table.add_column("GiB", justify="right")
    table.add_column("what it is")
    for term in sorted(memory.terms, key=lambda term: -term.bytes):
        if term.bytes >= 0.005 * GIB:
            table.add_row(term.name, f"{term.bytes / GIB:.2f}", term.why)
    table.add_section()
    table.add_row("allocated", f"{memory.allocated / GIB:.2f}", "torch.cuda.max_memory_allocated")
    rest = memory.needed(margin) - memory.allocated
    table.add_row("margin", f"{rest / GIB:.2f}", f"{margin:.0%} in pieces; CUDA context and NCCL 1.5 GiB (assumed)")
    fits = "fits" if candidate.fits(hardware, margin) else "[bold red]does not fit[/]"
    table.add_row("needed", f"{memory.needed(margin) / GIB:.2f}", f"{fits} into {hardware.memory / GIB:.1f} GiB")
    return table


def time_table(candidate: Candidate, stage: Stage) -> Table:
    """Return what a step's time is spent on."""
    time = candidate.time
    title = f"A step of {stage.batch_size:,} sequences of {stage.sequence_length:,} tokens: {time.seconds:.2f} s"
    table = Table(title=title, title_justify="left")
    table.add_column("spent on")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, words in SPENT_ON.items():
        seconds = getattr(time, name)
        if seconds > 0:
            table.add_row(words, f"{seconds:.3f}", f"{seconds / time.seconds:.1%}")
    return table


def speed_lines(candidate: Candidate, hardware: Hardware, stage: Stage) -> list[str]:
    """Return tokens per second, MFU by two formulas, and the operations of a token."""
    time, model = candidate.time, candidate.config.model
    speed = time.tokens_per_second_per_device
    low, high = speed * (1 - MEDIAN_ERROR), speed * (1 + MEDIAN_ERROR)
    utilizations = [
        f"{model_flops_utilization(speed, hardware.flops, model, stage.sequence_length, formula):.1%} ({formula})"
        for formula in ("palm_full_attention", "causal_attention")
    ]
    flops = forward_flops(model, stage.sequence_length)
    hints = []
    if candidate.config.data.document_masks and candidate.config.engine.attention is AttentionName.sdpa:
        hints.append(
            "engine.attention=sdpa multiplies every key with every query under document masks; engine.attention=flex "
            "or varlen skips what they hide"
        )
    return [
        f"[bold]{speed:,.0f} tokens/s/GPU[/], {speed * time.devices:,.0f} tokens/s; half of the held-out published "
        f"runs were within ±{MEDIAN_ERROR:.0%}: {low:,.0f} to {high:,.0f}",
        f"MFU {' · '.join(utilizations)}",
        f"operations of a token, forward and backward, in GFLOP: attention's products "
        f"{3 * flops.attention_projections / 1e9:,.2f}, feed-forward {3 * flops.feed_forward / 1e9:,.2f}, head "
        f"{3 * flops.head / 1e9:,.2f}, attention {3 * flops.attention_causal / 1e9:,.2f} causal "
        f"({3 * flops.attention_full / 1e9:,.2f} full)",
        *hints,
    ]


def layouts_table(best: list[Candidate], margin: float, top: int, tried: int) -> Table:
    """Return the fastest layouts."""
    table = Table(title=f"The {min(top, len(best))} fastest of {tried:,} layouts", title_justify="left")
    for name in (
        "pp",
        "replicate",
        "shard",
        "cp",
        "tp",
        "batch",
        "schedule",
        "recompute",
        "GiB",
        "bubble",
        "tok/s/GPU",
    ):
        table.add_column(name, justify="left" if name in ("schedule", "recompute") else "right")
    for candidate in best[:top]:
        layout, engine = candidate.layout, candidate.config.engine
        schedule = "" if layout.pipeline == 1 else layout.config.pipeline_schedule.name
        if layout.config.stages_per_rank > 1:
            schedule += f" × {layout.config.stages_per_rank}"
        if engine.reduce_gradients.name == "once":
            schedule += ", reduced once"
        table.add_row(
            *(str(size) for size in layout.sizes),
            str(layout.micro_batch_size),
            schedule,
            engine.activation_checkpointing.name,
            f"{candidate.memory.needed(margin) / GIB:.0f}",
            f"{candidate.time.bubble / candidate.time.seconds:.0%}",
            f"{candidate.time.tokens_per_second_per_device:,.0f}",
        )
    return table


def run_table(config: PlanConfig, timed: list[tuple[Stage, float]]) -> Table:
    """Return the recipe's stages over time.

    Args:
        timed: stages with the seconds of one of their steps.
    """
    table = Table(title="The run", title_justify="left")
    for name in ("steps", "sequences", "length", "tokens a step", "tokens", "s a step", "days"):
        table.add_column(name, justify="right")
    for stage, seconds in timed:
        table.add_row(
            f"{stage.first_step + 1:,} to {stage.first_step + stage.steps:,}",
            f"{stage.batch_size:,}",
            f"{stage.sequence_length:,}",
            f"{stage.batch_tokens:,}",
            f"{stage.tokens / 1e9:,.2f} B",
            f"{seconds:.2f}",
            f"{seconds * stage.steps / 86400:,.2f}",
        )
    return table


def goodput_lines(config: PlanConfig, seen: Goodput, days: float) -> list[str]:
    """Return what faults leave of the time: now, and with the best interval between checkpoints."""
    settings = config.plan
    lines = [
        f"a fault every {seen.hours_between_faults:,.2f} hours ({settings.faults_per_device_hour:.3g} per device and "
        f"hour), restarts of {settings.restart_seconds:g} s, {settings.stall_seconds:g} s of waiting for a checkpoint, "
        f"which is whole {settings.write_seconds:g} s later:"
    ]
    if seen.planned is None:
        lines.append("  checkpoint.every=0: a fault loses everything")
    else:
        length = f", {days / seen.planned:,.1f} days with them" if seen.planned > 0.01 else ""
        lines.append(f"  checkpoint.every={config.checkpoint.every}: goodput {seen.planned:.1%}{length}")
    lines.append(f"  checkpoint.every={seen.best_every}, the best: goodput {seen.best:.1%}")
    return lines


def run_lines(config: PlanConfig, total: Bill, used: list[SourceUse]) -> list[str]:
    """Return the totals of the run, one fact a line."""
    rates = ", ".join(f"{rate(config, step):.3g} at {step + 1:,} ({why})" for why, step in key_steps(config))
    lines = [
        f"[bold]{total.tokens / 1e9:,.1f} B tokens, {total.days:,.1f} days, {total.gpu_hours:,.0f} GPU-hours[/]"
        + ("" if total.price is None else f", price {total.price:,.0f}"),
        f"learning rate {rates}",
        f"energy {total.mwh:,.1f} MWh, {total.tco2e:,.1f} tCO2e (GPU-hours × watts × PUE {config.plan.pue:g} × "
        f"{config.plan.kg_co2e_per_kwh:g} kg/kWh, as in the Llama papers)",
        f"checkpoint {total.checkpoint_bytes / 1e9:,.1f} GB, {total.checkpoints} at once "
        f"{total.checkpoint_bytes * total.checkpoints / 1e12:,.2f} TB; Hugging Face in bf16 "
        f"{2 * parameter_count(config.model) / 1e9:,.1f} GB; token shards {total.shard_bytes / 1e12:,.2f} TB for one "
        "epoch",
    ]
    if not used:
        lines.append("epochs: not known; give data.shards=DIR")
    for use in used:
        seen = "epochs not known (no data.shards)" if use.epochs is None else f"{use.epochs:.2f} epochs"
        lines.append(f"  {use.name}: {use.tokens / 1e9:,.1f} B tokens, {seen}")
    return lines
