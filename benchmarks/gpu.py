"""Ten minutes on one GPU: what works, how fast it is, where the time goes. No network, random data.

    python benchmarks/gpu.py                      # everything, in a checkout on a machine with a GPU
    python benchmarks/gpu.py --only full ceilings # what has one of these words in its name
    python benchmarks/gpu.py --layers 8           # a model that fits a smaller GPU
    python benchmarks/gpu.py --device cpu --small # the same code on tiny shapes

Every section stands alone, on a GPU in a process of its own: one that fails or is refused is reported, and the rest
goes on. The table is printed and the results are written to --output after each. docs/gpu.md says how to read it.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llama_foundation.errors import UserError  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One way of training the model; `settings` are overrides of llama-train."""

    name: str
    settings: tuple[str, ...] = ()
    library: str = "native"  # or transformers: settings are then those of `transformers_row`
    sequence_length: int = 4096
    micro_batch_size: int = 1
    documents: bool = False  # several to a sequence, attention within each


FULL = ("engine.activation_checkpointing=full", "engine.compile=true")
CHUNKED = (*FULL, "engine.loss_chunk=1024")
SELECTIVE = ("engine.activation_checkpointing=selective", "engine.compile=true", "engine.loss_chunk=1024")
EVERY_2ND = ("engine.activation_checkpointing=every_n", "engine.compile=true", "engine.loss_chunk=1024")
NONE = ("engine.activation_checkpointing=none", "engine.compile=true", "engine.loss_chunk=1024")
ROWS = (
    Row("full recomputation, compile", FULL),
    Row("full recomputation, compile, loss in chunks", CHUNKED),
    Row("selective recomputation, compile, loss in chunks", SELECTIVE),
    Row("transformers: full recomputation, compile, autocast", ("compile", "autocast"), "transformers"),
    Row("transformers: full recomputation, compile, bf16 weights", ("compile", "bf16"), "transformers"),
    Row("no recomputation, compile, loss in chunks", NONE),
    Row("every 2nd layer recomputed, compile, loss in chunks", EVERY_2ND),
    Row("full recomputation, compile, sequence 8192", CHUNKED, sequence_length=8192),
    Row("full recomputation, compile, 2 sequences", CHUNKED, micro_batch_size=2),
    Row("float8 tensorwise, full recomputation, compile", (*CHUNKED, "engine.float8=tensorwise")),
    Row("float8 rowwise, full recomputation, compile", (*CHUNKED, "engine.float8=rowwise")),
    Row("documents, sdpa", (*CHUNKED, "engine.attention=sdpa"), documents=True),
    Row("documents, flex", (*CHUNKED, "engine.attention=flex"), documents=True),
    Row("documents, varlen", (*CHUNKED, "engine.attention=varlen"), documents=True),
    Row("full recomputation, eager", FULL[:1]),
)
"""The most important first: what comes after --minutes is skipped. Settings that this version does not know are refused
by name, and the row says so."""

SMALL = ("model=tiny", "engine.compile=false")
"""Overrides of --small, which wins over everything above."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    device: str
    small: bool
    layers: int | None
    steps: int
    output: Path

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


def ceilings(options: Options) -> dict[str, Any]:
    """What the device can do at best: a large bf16 product, and a copy that no cache holds."""
    import torch

    size = 256 if options.small else 8192
    a, b = (torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = measure(lambda: torch.mm(a, b, out=out), options, 20, 5)
    source = torch.randn((1 << 16 if options.small else 1 << 30), device=options.device)
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source), options, 20, 5)
    return {
        "matmul_tflops": 2 * size**3 / statistics.median(product) * 1e-12,
        "matmul_spread": spread(product),
        "copy_terabytes_per_second": 2 * source.nbytes / statistics.median(copy) * 1e-12,
        "copy_spread": spread(copy),
    }


def train_config(row: Row, options: Options) -> Any:
    """Compose what `llama-train` would run."""
    from llama_foundation import compose
    from llama_train.config import TrainConfig

    settings = {
        "model": "llama3_8b",
        "engine.precision": "bf16",
        "data.shards": "random",
        "data.sequence_length": str(min(row.sequence_length, 64) if options.small else row.sequence_length),
        "data.batch_size": str(row.micro_batch_size),
        "layout.micro_batch_size": str(row.micro_batch_size),
        "data.document_masks": str(row.documents).lower(),
        "optimizer.learning_rate": "1e-5",
        "steps": "1000",
        "cluster.device": options.device,
    }
    chosen = [*(row.settings if row.library == "native" else ()), *(SMALL if options.small else ())]
    settings |= dict(setting.split("=", 1) for setting in chosen)
    if options.layers:
        settings["model.layers"] = str(options.layers)
    return compose.compose("train", TrainConfig, [f"{name}={value}" for name, value in settings.items()])


@contextlib.contextmanager
def native_step(row: Row, options: Options) -> Iterator[tuple[Any, Callable[[], float]]]:
    """Build the engine as llama-train does, and yield (configuration, one optimizer step that returns its loss)."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from llama_train.data.batches import make_micro_batch
    from llama_train.distributed import distributed
    from llama_train.engine.build import build_engine
    from llama_train.model.initialize import standard_deviation
    from llama_train.model.names import is_norm
    from llama_train.parallel.resolve import resolve_layout

    config = train_config(row, options)
    generator = np.random.default_rng(0)
    length = config.data.sequence_length

    def window() -> tuple[Any, Any]:
        starts = np.flatnonzero(generator.random(length + 1) < 4 / length) if row.documents else np.array([], np.int64)
        return generator.integers(0, config.model.vocab_size, length + 1), starts

    def on_the_device(seed, name, shape, offsets, lengths, model, dtype):  # on the CPU, 8B take minutes
        if is_norm(name):
            return torch.ones(lengths, device=options.device, dtype=dtype)
        return torch.randn(lengths, device=options.device, dtype=dtype).mul_(standard_deviation(name, model))

    with (
        distributed(options.device, dist.HashStore(), 600) as world,
        mock.patch("llama_train.engine.shared.initial_values", on_the_device),
    ):
        engine = build_engine(config, resolve_layout(config, 1), world.device)
        batches = itertools.cycle(
            [[make_micro_batch([window() for _ in range(row.micro_batch_size)], row.documents)] for _ in range(8)]
        )
        yield config, lambda: engine.step(next(batches), 1e-5).loss


def native_row(row: Row, options: Options) -> dict[str, Any]:
    """Time optimizer steps of our engine."""
    with native_step(row, options) as (config, step):
        return timed_steps(step, config, options)


def transformers_row(row: Row, options: Options) -> dict[str, Any]:
    """Time the same work written with plain transformers: SDPA, fused AdamW, clipping, full recomputation.

    `autocast`: float32 weights, as ours; `bf16`: weights, gradients and moments all in bfloat16, less memory and less
    precision.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llama_train.checkpoint.huggingface_config import to_huggingface

    config = train_config(row, options)
    values = to_huggingface(config.model, "float32", None, None)
    values |= {"use_cache": False, "attn_implementation": "sdpa"}
    half = "bf16" in row.settings
    shape = LlamaConfig(**{key: value for key, value in values.items() if key not in ("architectures", "model_type")})
    with torch.device(options.device):
        model = LlamaForCausalLM(shape).to(torch.bfloat16 if half else torch.float32).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    called = torch.compile(model) if "compile" in row.settings and not options.small else model
    size = (row.micro_batch_size, config.data.sequence_length + 1)
    tokens = [torch.randint(config.model.vocab_size, size, device=options.device) for _ in range(8)]
    batches = itertools.cycle(tokens)

    def step() -> float:
        batch = next(batches)
        # Without autocast's cache: it would keep a bf16 copy of every weight.
        with torch.autocast(options.device, torch.bfloat16, enabled=not half, cache_enabled=False):
            logits = called(input_ids=batch[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return timed_steps(step, config, options)


def timed_steps(step: Callable[[], float], config: Any, options: Options) -> dict[str, Any]:
    """Warm up, time steps, and put them into the numbers of a row."""
    import torch

    from llama_train.model.size import MFU_FORMULAS, training_bytes
    from llama_train.observe.speed import memory_bytes, peak_tflops, utilization

    device = torch.device(options.device)
    started = time.perf_counter()
    loss = step()
    first = time.perf_counter() - started
    for _ in range(2):
        step()
    if options.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = measure(step, options, options.steps, 0)
    tokens = config.data.batch_size * config.data.sequence_length
    speed = tokens / statistics.median(seconds)
    peak = peak_tflops(torch.cuda.get_device_name() if options.cuda else "cpu")
    flops = {name: formula(config.model, config.data.sequence_length) for name, formula in MFU_FORMULAS.items()}
    return {
        "tokens_per_second": speed,
        "milliseconds": 1000 * statistics.median(seconds),
        "spread": spread(seconds),
        "first_step_seconds": first,
        "first_loss": loss,
        "peak_bytes": memory_bytes(device),
        "reserved_bytes": torch.cuda.max_memory_reserved() if options.cuda else None,
        "weights_gradients_and_optimizer_bytes": training_bytes(config.model).total,
        "tflops": {name: speed * count * 1e-12 for name, count in flops.items()},
        "mfu": {name: utilization(speed, count, peak) for name, count in flops.items()},
    }


def profile(options: Options) -> dict[str, Any]:
    """Trace one step of the first row and sum up its kernels by what they do."""
    import torch

    from llama_train.observe.profiler import StepProfiler

    with native_step(ROWS[0], options) as (_, step):
        for _ in range(3):
            step()
        profiler = StepProfiler(torch.device(options.device))
        profiler.start()
        step()
        result = profiler.stop()
        trace = options.output.with_suffix(".trace.json.gz")
        kept = profiler.write_trace(trace)
    print(result.table(ROWS[0].name))
    return {"seconds": result.seconds, "by_kind": result.by_kind, "trace": str(trace) if kept else None}


def gpu_tests(options: Options) -> dict[str, Any]:
    """Run the tests marked `gpu`."""
    where = "tests/llama_train/test_on_gpu.py" if options.small else "tests"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", where]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    lines = (ended.stdout + ended.stderr).strip().splitlines() or [""]
    if ended.returncode not in (0, 5):  # 5: there are none
        raise RuntimeError("\n".join(lines[-15:]))
    return {"summary": lines[-1]}


def machine(options: Options) -> dict[str, Any]:
    """What was measured on."""
    import torch

    facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": "cpu",
    }
    if options.cuda:
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        facts |= {"device": properties.name, "bytes": properties.total_memory, "capability": capability}
    return facts


SECTIONS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "machine": machine,
    "tests": gpu_tests,
    "ceilings": ceilings,
    "profile": profile,
}


def measure(action: Callable[[], Any], options: Options, times: int, warm_up: int) -> list[float]:
    """Return seconds of each of `times` calls after `warm_up` others: CUDA events, or the clock on a CPU."""
    import torch

    for _ in range(warm_up):
        action()
    if not options.cuda:
        marks = [time.perf_counter()]
        for _ in range(times):
            action()
            marks.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(marks)]
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        action()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in itertools.pairwise(events)]


def spread(seconds: list[float]) -> float:
    """Return (slowest - fastest) / median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def run_section(name: str, options: Options) -> dict[str, Any]:
    """Run one section or row here; return its numbers under `status`, or why there are none."""
    try:
        row = next((row for row in ROWS if row.name == name), None)
        if row is None:
            numbers = SECTIONS[name](options)
        else:
            numbers = (native_row if row.library == "native" else transformers_row)(row, options)
        return {"status": "measured", **numbers}
    except UserError as error:
        return {"status": "refused", "why": str(error)}
    except ImportError as error:
        return {"status": "refused", "why": f"a package is not here: {error}"}
    except Exception as error:
        return {"status": "failed", "why": f"{type(error).__name__}: {error}"}


def run_apart(name: str, options: Options, seconds: float) -> dict[str, Any]:
    """Run one section in a process of its own, so that its memory and its crashes are its own, too."""
    with tempfile.TemporaryDirectory() as directory:
        result, log = Path(directory) / "result.json", Path(directory) / "log"
        command = [sys.executable, __file__, *arguments_of(options), "--section", name, "--result", str(result)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return {"status": "failed", "why": f"was not done after {seconds:.0f} s"}
        output = log.read_text(errors="replace")
        if not result.exists():
            return {"status": "failed", "why": f"ended with status {process.returncode}: {output[-2000:]}"}
        if name == "profile":
            print(output)
        return json.loads(result.read_text())


def arguments_of(options: Options) -> list[str]:
    """The command line that gives `options`."""
    values = ["--device", options.device, "--steps", str(options.steps), "--output", str(options.output)]
    values += ["--small"] if options.small else []
    return values + (["--layers", str(options.layers)] if options.layers else [])


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the results for people."""
    lines = [
        f"{'':<56}{'tokens/s':>10}{'ms':>9}{'spread':>8}{'GiB':>7}{'MFU causal':>12}{'MFU PaLM':>10}{'TFLOP/s':>9}"
    ]
    for row in ROWS:
        result = results.get(row.name)
        if result is None or result["status"] != "measured":
            lines.append(f"{row.name:<56}  {explained(result)}")
            continue
        causal, palm = (result["mfu"][formula] for formula in ("causal_attention", "palm_full_attention"))
        utilized = "".join(f"{'-' if m is None else f'{m:.1%}':>{w}}" for m, w in ((causal, 12), (palm, 10)))
        lines.append(
            f"{row.name:<56}{result['tokens_per_second']:>10,.0f}{result['milliseconds']:>9.1f}{result['spread']:>8.1%}"
            f"{result['peak_bytes'] / 2**30:>7.1f}{utilized}{result['tflops']['causal_attention']:>9.1f}"
        )
    lines.append("")
    for name in SECTIONS:
        shown = results.get(name)
        if shown is None or shown["status"] != "measured":
            lines.append(f"{name}: {explained(shown)}")
        elif name != "profile":
            facts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items() if k != "status")
            lines.append(f"{name}: {', '.join(facts)}")
    lines += comparisons(results)
    return "\n".join(lines)


def explained(result: dict[str, Any] | None) -> str:
    """Why there are no numbers, in one line."""
    return "not run" if result is None else f"{result['status']}: {result['why'].strip().splitlines()[-1][:160]}"


def comparisons(results: dict[str, dict[str, Any]]) -> list[str]:
    """The ratios that the numbers were measured for."""
    measured = {row: results[row.name] for row in ROWS if results.get(row.name, {}).get("status") == "measured"}
    ours, lines = measured.get(ROWS[0]), []
    if ours is None:
        return []
    for row, result in measured.items():
        if row.library == "transformers":
            ratio = ours["tokens_per_second"] / result["tokens_per_second"]
            lines.append(f"{ROWS[0].name}: {ratio:.2f} times the speed of {row.name}")
    if results.get("ceilings", {}).get("status") == "measured":
        part = ours["tflops"]["causal_attention"] / results["ceilings"]["matmul_tflops"]
        lines.append(f"{ROWS[0].name}: {part:.1%} of the measured ceiling of matrix products")
    predicted, peak = ours["weights_gradients_and_optimizer_bytes"], ours["peak_bytes"]
    lines.append(
        f"memory: {predicted / 2**30:.1f} GiB of weights, gradients and optimizer state predicted, peak "
        f"{peak / 2**30:.1f} GiB: {(peak - predicted) / 2**30:.1f} GiB for activations, logits and copies"
    )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--layers", type=int, help="instead of the model's 32")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each row")
    parser.add_argument("--only", nargs="+", default=[], help="sections and rows with one of these words in their name")
    parser.add_argument("--minutes", type=float, default=10.0, help="what would begin later is left out")
    parser.add_argument("--apart", action="store_true", help="a process for each section, also with --small")
    parser.add_argument("--output", type=Path, default=Path("gpu-results.json"))
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    options = Options(given.device, given.small, given.layers, given.steps, given.output.resolve())
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    if given.section:
        given.result.write_text(json.dumps(run_section(given.section, options)))
        return 0
    names = ["machine", "ceilings", ROWS[0].name, "profile", *(row.name for row in ROWS[1:]), "tests"]
    if options.cuda and not options.small:
        names.insert(1, names.pop())  # what is wrong is not worth timing
    names = [name for name in names if not given.only or any(word in name for word in given.only)]
    deadline = time.monotonic() + 60 * given.minutes
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        left = deadline - time.monotonic()
        if left <= 0:
            results[name] = {"status": "left out", "why": f"--minutes {given.minutes:g} were over"}
        elif given.apart or not options.small:
            results[name] = run_apart(name, options, max(left, 60))
        else:
            results[name] = run_section(name, options)
        print(f"{name}: {results[name]['status']}, {deadline - time.monotonic():.0f} s left", flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"rows": [asdict(row) for row in ROWS], "results": results}
        options.output.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\n{table(results)}\n\nwritten to {options.output}")
    return int(any(result["status"] == "failed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
