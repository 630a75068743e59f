"""How far predictions are from published measurements."""

from dataclasses import dataclass
from pathlib import Path

from llama_train.plan.published import PublishedRun, predicted_memory, predicted_speed

MEDIAN_ERROR = 0.10
"""Of tokens per second and GPU, on the published runs that nothing was fitted to; a test holds it."""


@dataclass(frozen=True)
class Comparison:
    """A published run beside its prediction. Errors are (predicted - published) / published."""

    run: PublishedRun
    predicted_speed: float  # tokens per second and GPU
    predicted_memory: float  # GiB

    @property
    def speed_error(self) -> float:
        return self.predicted_speed / self.run.tokens_per_second - 1

    @property
    def memory_error(self) -> float | None:
        """None where no memory was published."""
        return None if self.run.memory_gib is None else self.predicted_memory / self.run.memory_gib - 1


def comparison(runs: list[PublishedRun]) -> list[Comparison]:
    """Predict every run."""
    return [Comparison(run, predicted_speed(run), predicted_memory(run)) for run in runs]


def markdown(rows: list[Comparison]) -> str:
    """Return the comparison as a page."""
    lines = [
        "# Predictions against published runs",
        "",
        "Written by `benchmarks/planner_fit.py`; [planning](planning.md) says what to make of it. Speeds are tokens",
        "per second and GPU, memory is GiB; *fits*: the efficiencies were fitted to it, *test*: they never saw it.",
        "",
        "| run | half | published | predicted | error | memory | predicted | error | assumed |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    source = ""
    for row in rows:
        run = row.run
        if run.source != source:
            source = run.source
            lines.append(f"| *{source}* | | | | | | | | |")
        memory = " | | "
        if row.memory_error is not None:
            memory = f"{run.memory_gib:.1f} | {row.predicted_memory:.1f} | {row.memory_error:+.0%}"
        half = "fits" if run.fits else "test"
        speeds = f"{run.tokens_per_second:,.0f} | {row.predicted_speed:,.0f} | {row.speed_error:+.0%}"
        lines.append(f"| {run.name} | {half} | {speeds} | {memory} | {', '.join(run.assumed)} |")
    return "\n".join(lines) + "\n"


def scatter(rows: list[Comparison], path: Path) -> None:
    """Draw predicted over published tokens per second and GPU, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.2))
    axes = figure.add_subplot()
    low = min(min(row.predicted_speed, row.run.tokens_per_second) for row in rows) / 1.3
    high = max(max(row.predicted_speed, row.run.tokens_per_second) for row in rows) * 1.3
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    axes.fill_between([low, high], [low * 0.85, high * 0.85], [low * 1.15, high * 1.15], color="0.9", label="±15 %")
    for fits, marker, label in ((True, "x", "fitted to"), (False, "o", "held out")):
        chosen = [row for row in rows if row.run.fits is fits]
        speeds = [row.run.tokens_per_second for row in chosen], [row.predicted_speed for row in chosen]
        axes.scatter(*speeds, marker=marker, s=22, label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="published tokens/s/GPU", ylabel="predicted tokens/s/GPU")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
