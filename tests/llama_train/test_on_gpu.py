"""What only a GPU can show: the same run there and on the CPU, and looking inside of its steps."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from llama_train.checkpoint.restore import open_checkpoint
from llama_train.observe.profiler import IDLE
from tests.llama_train.test_train import records, tensors, train_here

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in records(run)]


def largest_difference(ours: Path, theirs: Path) -> float:
    a, b = (tensors(open_checkpoint(run)) for run in (ours, theirs))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_float32_on_the_gpu_follows_the_cpu(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=cpu", "cluster.device=cpu"])
    train_here([*tiny, "name=gpu", f"cluster.device={DEVICE}"])
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)
    # 12 updates of at most 1e-2; Adam turns rounding of a gradient near 0 into a part of a whole update.
    assert largest_difference(tmp_path / "gpu", tmp_path / "cpu") < 2e-2


def test_float64_on_the_gpu_is_the_cpus(tiny: list[str], tmp_path: Path) -> None:
    precise = [*tiny, "engine.precision=fp64"]
    train_here([*precise, "name=cpu", "cluster.device=cpu"])
    train_here([*precise, "name=gpu", f"cluster.device={DEVICE}"])
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-10)
    assert largest_difference(tmp_path / "gpu", tmp_path / "cpu") < 1e-7


def test_bf16_on_the_gpu_follows_float32(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=full", f"cluster.device={DEVICE}"])
    train_here([*tiny, "name=half", f"cluster.device={DEVICE}", "engine.precision=bf16"])
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert 0 < max(abs(a - b) for a, b in zip(full, half, strict=True)) < 1e-2


def test_compiled_on_the_gpu_follows_eager(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=eager", f"cluster.device={DEVICE}"])
    train_here(
        [*tiny, "name=compiled", f"cluster.device={DEVICE}", "engine.compile=true", "logging.statistics_every=5"]
    )
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


def test_a_checkpoint_from_the_gpu_goes_on_on_the_cpu(tiny: list[str], tmp_path: Path) -> None:
    train_here([*tiny, "name=cpu", "cluster.device=cpu"])
    train_here([*tiny, "name=moved", f"cluster.device={DEVICE}", "stop_at_step=6"])
    train_here([*tiny, "name=moved", "cluster.device=cpu"])
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)
    assert [row["attempt"] for row in records(tmp_path / "moved")] == [1] * 6 + [2] * 6


def test_a_step_leaves_its_kernels_and_its_memory_and_the_same_bits(tiny: list[str], tmp_path: Path) -> None:
    short = [*tiny, "steps=4", f"cluster.device={DEVICE}", "engine.precision=bf16"]
    train_here([*short, "name=plain"])
    looks = ["logging.profile_steps=[3]", "logging.memory_snapshot_steps=[3]", "logging.statistics_every=2"]
    train_here([*short, "name=looked", *looks])
    assert losses(tmp_path / "plain") == losses(tmp_path / "looked")
    run = tmp_path / "looked"
    trace = json.loads(gzip.decompress((run / "profile/step-00000003/rank-0.trace.json.gz").read_bytes()))
    assert "kernel" in {event.get("cat") for event in trace["traceEvents"]}
    table = (run / "profile/step-00000003/rank-0.txt").read_text()
    assert "matrix products" in table
    assert IDLE in table
    snapshot = run / "memory/step-00000003.rank-0.pickle"
    assert 1000 < snapshot.stat().st_size < 100 * 2**20


def test_nccls_flight_record_names_the_collectives_of_this_process(tmp_path: Path) -> None:
    import torch.distributed as dist

    from llama_train.distributed import distributed, meet
    from llama_train.survive.flight_recorder import write_flight_record

    with distributed(DEVICE, meet(10), 60):
        dist.all_reduce(torch.ones(8, device=DEVICE))
        torch.cuda.synchronize()
        assert write_flight_record(tmp_path / "record.json") is None
    names = [entry["profiling_name"] for entry in json.loads((tmp_path / "record.json").read_text())["entries"]]
    assert "nccl:all_reduce" in names
