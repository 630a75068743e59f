"""Fit the planner's efficiencies to half of the published runs, and print the error on the other half.

    python benchmarks/planner_fit.py         # what is stored: predictions and errors
    python benchmarks/planner_fit.py --plot docs/planning-accuracy.png --table docs/planning-table.md
    python benchmarks/planner_fit.py --fit   # search again; prints values for configs/accelerator/ and plan/speed.py

The search changes one value after the other, in ever smaller steps, as long as the mean of |log(predicted/published)|
over the fitting half gets smaller; it never sees the testing half.
"""

import argparse
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_train.plan.accuracy import comparison, markdown, scatter
from llama_train.plan.published import PublishedRun, predicted_speed, published_runs
from llama_train.plan.speed import FIT, Fit

SHARED = {
    "half_size": (16.0, 600.0),
    "link": (0.3, 0.95),
    "network": (0.3, 0.95),
    "hop_seconds": (1e-6, 1e-5),
    "overlap": (0.3, 1.0),
    "asynchronous": (0.2, 1.0),
    "float8": (0.4, 1.0),
    "node_doubling": (0.0, 0.03),
}
"""Where each shared efficiency may lie."""

OWN = {"matmul_efficiency": (0.4, 0.98), "attention_efficiency": (0.15, 0.6)}
"""Where those of an accelerator may lie."""

Values = dict[str, float]


def error(runs: list[PublishedRun], values: Values) -> float:
    """Return the mean of |log(predicted/published)|."""
    fit = Fit(**{name: values[name] for name in SHARED}, half_sequence=FIT.half_sequence, bandwidth=FIT.bandwidth)
    total = 0.0
    for run in runs:
        accelerator = run.hardware.accelerator
        own = {name: values[f"{accelerator.name}.{name}"] for name in OWN}
        hardware = replace(run.hardware, accelerator=replace(accelerator, **own))
        total += abs(math.log(predicted_speed(run, fit, hardware) / run.tokens_per_second))
    return total / len(runs)


def search(runs: list[PublishedRun]) -> Values:
    """Return the values with the smallest error on `runs` that the search finds, beginning at the stored ones."""
    bounds = dict(SHARED)
    values = {name: getattr(FIT, name) for name in SHARED}
    for run in runs:
        accelerator = run.hardware.accelerator
        for name, limits in OWN.items():
            bounds[f"{accelerator.name}.{name}"] = limits
            values[f"{accelerator.name}.{name}"] = getattr(accelerator, name)
    best = error(runs, values)
    step = 0.25
    while step > 0.01:
        improved = False
        for name, (low, high) in bounds.items():
            for sign in (1, -1):
                tried = min(max(values[name] + sign * step * (high - low), low), high)
                found = error(runs, values | {name: tried})
                if found < best - 1e-6:
                    values[name], best, improved = tried, found, True
        if not improved:
            step /= 2
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw predicted over published speed")
    parser.add_argument("--table", type=Path, help="write the comparison as Markdown")
    given = parser.parse_args()
    runs = published_runs()
    if given.fit:
        fitting = [run for run in runs if run.fits]
        values = search(fitting)
        for name, value in values.items():
            print(f"{name} = {value:.3g}")
        testing = [run for run in runs if not run.fits]
        print(f"mean |log error|: fitting half {error(fitting, values):.3f}, other half {error(testing, values):.3f}")
        return 0
    rows = comparison(runs)
    for row in rows:
        run, half = row.run, "fits" if row.run.fits else "test"
        speeds = f"{row.predicted_speed:9.0f}{run.tokens_per_second:9.0f}{row.speed_error:+7.0%}"
        memory = ""
        if row.memory_error is not None:
            memory = f"{row.predicted_memory:7.1f}{run.memory_gib:7.1f}{row.memory_error:+7.0%}"
        print(f"{run.name:48}{half:6}{speeds} {memory}")
    for name, chosen in (("fitting", True), ("testing", False)):
        errors = [abs(row.speed_error) for row in rows if row.run.fits is chosen]
        print(f"{name} half: median {statistics.median(errors):.1%}, worst {max(errors):.0%} of {len(errors)}")
    memory = [abs(row.memory_error) for row in rows if row.memory_error is not None]
    print(f"memory: median {statistics.median(memory):.1%}, worst {max(memory):.0%} of {len(memory)}")
    if given.plot:
        scatter(rows, given.plot)
    if given.table:
        given.table.write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
