"""Looking inside of steps changes nothing, and leaves what was asked for."""

import gc
import gzip
import json
import math
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from llama_foundation import compose
from llama_foundation.errors import ConfigError, NumbersError
from llama_train.config import TrainConfig
from llama_train.engine.engine import StepResult
from llama_train.observe import memory_snapshot, profiler
from llama_train.observe.heatmap import heat_map, merge
from llama_train.observe.metrics import (
    Event,
    MetricsFile,
    Statistics,
    history,
    next_attempt,
    read,
    superseding_statistics,
)
from llama_train.observe.observers import Observers
from llama_train.observe.profiler import ELEMENTWISE, IDLE, StepProfiler, covered, kind_of
from tests.llama_train.observe.made_up_steps import step_record
from tests.llama_train.test_train import assert_same_bits, refusal, train_here


def test_a_run_that_is_looked_into_has_the_bits_of_one_that_is_not(tiny: list[str], tmp_path: Path) -> None:
    short = [*tiny, "steps=6", "checkpoint.every=0"]
    train_here([*short, "name=plain"])
    everything = ["logging.profile_steps=[2,5]", "logging.statistics_every=3", "engine.garbage_collection_every=2"]
    train_here([*short, "name=looked", *everything, "logging.report=true"])
    assert_same_bits(tmp_path / "plain" / "checkpoints", tmp_path / "looked" / "checkpoints")
    plain, looked = history(tmp_path / "plain/metrics.jsonl"), history(tmp_path / "looked/metrics.jsonl")
    assert [(r["loss"], r["grad_norm"]) for r in plain] == [(r["loss"], r["grad_norm"]) for r in looked]

    run = tmp_path / "looked"
    records = list(read(run / "metrics.jsonl"))
    assert [r.step for r in records if isinstance(r, Statistics)] == [3, 6]
    events = [r for r in records if isinstance(r, Event)]
    assert [(e.step, str(run / "profile") in e.message) for e in events] == [(2, True), (5, True)]
    assert sorted(str(p.relative_to(run / "profile")) for p in (run / "profile").rglob("*") if p.is_file()) == [
        f"step-0000000{step}/rank-0.{ending}" for step in (2, 5) for ending in ("trace.json.gz", "txt")
    ]
    trace = json.loads(gzip.decompress((run / "profile/step-00000002/rank-0.trace.json.gz").read_bytes()))
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert {"aten::mm", "aten::_fused_adamw_"} <= names, "one whole step, update and all"
    table = (run / "profile/step-00000002/rank-0.txt").read_text()
    assert table.startswith("step 2, rank 0\n")
    for kind in ("matrix products", "attention", "loss", "optimizer", "copies", ELEMENTWISE, IDLE):
        assert re.search(rf"^{kind} +\d+\.\d{{4}} +\d+\.\d%$", table, flags=re.M), kind
    assert "aten::mm" in table
    page = (run / "report.html").read_text()
    assert "Gradient RMS by layer" in page
    assert "RMS of layer outputs" in page


def test_statistics_of_a_step_that_is_not_finite_are_written_before_the_run_ends(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_train.model.llama import Block

    forward = Block.forward

    def broken(self: Block, *arguments: torch.Tensor) -> torch.Tensor:
        output = forward(self, *arguments).clone()
        output[0, 3, 5] = math.inf
        return output

    monkeypatch.setattr(Block, "forward", broken)
    assert "step 1: loss=nan" in refusal([*tiny, "logging.statistics_every=1"], capsys, (NumbersError.exit_code,))
    (statistics,) = [r for r in read(tmp_path / "run/metrics.jsonl") if isinstance(r, Statistics)]
    first = statistics.layers[0]
    assert first["outputs_not_finite"] == 1 / (32 * 48 * 4) * 4  # one of each micro-batch's 1 × 32 × 48
    assert first["outputs_rms"] is None
    assert first["outputs_max"] is None
    assert statistics.layers[1]["outputs_not_finite"] > first["outputs_not_finite"]


def test_garbage_is_collected_after_the_chosen_steps_and_at_no_other_time(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_train import train as training

    at: list[int] = []
    finished = [-1]

    def collected(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and finished[0] >= 0:
            at.append(finished[0])

    def step_done(self: training.Run, result: StepResult) -> None:
        self.step, self.tokens = self.step + 1, self.tokens + result.tokens
        finished[0] = self.step
        litter = [[] for _ in range(3000)]  # enough to wake Python's own collector, several times
        for piece in litter:
            piece.append(piece)

    def finish(self: training.Run, *arguments: object) -> None:
        finished[0] = -1

    monkeypatch.setattr(training.Run, "step_done", step_done)
    monkeypatch.setattr(training.Run, "finish", finish)
    monkeypatch.setattr(training.Run, "save", lambda self, *arguments: None)
    gc.callbacks.append(collected)
    try:
        train_here([*tiny, "steps=7", "engine.garbage_collection_every=3"])
        assert at == [3, 6]
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
        at.clear()
        train_here([*tiny, "name=other", "steps=7"])
        assert len(at) > 7, "without the setting Python collects when it likes"
    finally:
        gc.callbacks.remove(collected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logging.profile_steps=[0]"], r"profile_steps=\[0\]: step 0 must be between 1 and steps=12"),
        (["logging.profile_steps=[3,13]"], r"step 13 must be between 1 and steps=12"),
        (["logging.memory_snapshot_steps=[99]"], r"logging\.memory_snapshot_steps=\[99\]: step 99"),
        (["logging.memory_snapshot_steps=[1]", "cluster.device=cpu"], r"memory_snapshot_steps=\[1\]: only CUDA"),
        ([f"logging.profile_steps={list(range(1, 22))}", "steps=30"], r"lists 21 steps; use at most 20"),
        (["logging.profile_ranks=[-1]"], r"logging\.profile_ranks=-1 must be at least 0"),
        (["logging.profile_ranks=[]", "logging.profile_steps=[1]"], r"profile_ranks=\[\] leaves nobody"),
        (["logging.statistics_every=-1"], r"logging\.statistics_every=-1 must be at least 0"),
        (["engine.garbage_collection_every=-1"], r"engine\.garbage_collection_every=-1 must be at least 0"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_by_name(tiny: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose.compose("train", TrainConfig, [*tiny, *overrides])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_a_memory_snapshot_without_cuda_and_a_rank_that_does_not_exist_are_refused(
    tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    error = refusal([*tiny, "logging.memory_snapshot_steps=[1]"], capsys)
    assert "logging.memory_snapshot_steps=[1]: only CUDA's allocator keeps a history" in error
    error = refusal([*tiny, "logging.profile_steps=[1]", "logging.profile_ranks=[0,1]"], capsys)
    assert "logging.profile_ranks=[0, 1]: this run has the ranks 0 to 0" in error


def test_a_memory_snapshot_is_recorded_bounded_and_published_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"allocations"))
    memory_snapshot.start_recording()
    line = memory_snapshot.write_snapshot(tmp_path / "memory", 12, 3)
    path = tmp_path / "memory/step-00000012.rank-3.pickle"
    assert line == f"memory snapshot in {path}"
    assert path.read_bytes() == b"allocations"
    assert os.listdir(path.parent) == [path.name]
    assert calls == [{"max_entries": memory_snapshot.MOST_EVENTS, "stacks": "python"}, {"enabled": None}]


def test_a_full_disk_is_told_and_the_run_goes_on(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StepProfiler, path: Path) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StepProfiler, "write_trace", full)
    train_here([*tiny, "steps=2", "logging.profile_steps=[1]"])
    records = list(read(tmp_path / "run/metrics.jsonl"))
    assert [r.message for r in records if isinstance(r, Event) and "No space left" in r.message]
    assert len(history(tmp_path / "run/metrics.jsonl")) == 2


def test_a_trace_that_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "TRACE_BYTES", 10)
    looking = StepProfiler(torch.device("cpu"))
    looking.start()
    torch.ones(3).sum()
    line = profiler.write_profile(looking, tmp_path, 1, 0)
    assert "the trace was left out" in line
    assert os.listdir(tmp_path / "step-00000001") == ["rank-0.txt"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>", "attention"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("void at::native::softmax_warp_forward_LogSoftMaxForward", "loss"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_poi_fused_mul_silu_0", ELEMENTWISE),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_time_covered_by_overlapping_kernels_counts_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2), (3, 4)]) == 5
    assert covered([]) == 0


def test_a_resumed_run_undoes_statistics_of_steps_that_it_does_again(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step, attempt in ((2, 1), (4, 1), (6, 1), (4, 2)):
            file.append(Statistics(step, attempt, {"w": {"weights_rms": math.inf}}, [{"outputs_rms": 1.0}]))
            file.append(step_record(step, attempt))
    kept = superseding_statistics(read(tmp_path / "metrics.jsonl"))
    assert [(record.step, record.attempt) for record in kept] == [(2, 1), (4, 2)]
    assert kept[0].parameters == {"w": {"weights_rms": None}}, "JSON knows no infinity"
    assert [row["step"] for row in history(tmp_path / "metrics.jsonl")] == [2, 4]
    assert next_attempt(tmp_path / "metrics.jsonl") == 3


def test_statistics_reach_file_and_views_and_what_is_not_finite_is_left_out_there(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = compose.compose("train", TrainConfig, [*tiny, "logging.tensorboard=true"])
    with Observers(config, tmp_path) as observe:
        norm = {"weights_rms": 1.5, "weights_max": math.inf}
        observe.statistics(4, {"model.norm.weight": norm}, [{"outputs_rms": 2.0}])
    with Observers(config, tmp_path / "other", main=False) as observe:
        observe.statistics(4, {}, [])
    assert not (tmp_path / "other").exists()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "kind": "statistics",
        "step": 4,
        "attempt": 1,
        "parameters": {"model.norm.weight": {"weights_rms": 1.5, "weights_max": None}},
        "layers": [{"outputs_rms": 2.0}],
    }
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["statistics/weights_rms/model.norm.weight", "statistics/outputs_rms/layer 0"]
    assert [(e.step, e.value) for e in events.Scalars("statistics/outputs_rms/layer 0")] == [(4, 2.0)]


def test_the_heat_map_has_a_cell_for_each_layer_and_step_strongest_where_the_value_is_largest() -> None:
    svg = heat_map("x & y", [10, 20, 30], np.array([[1.0, 10.0, 100.0], [1.0, 1.0, np.nan]]))
    cells = [e.attrib for e in ElementTree.fromstring(svg) if e.tag == "rect"]
    assert [cell["fill-opacity"] for cell in cells] == ["0.06", "0.53", "1.00", "0.06", "0.06", "1.00"]
    assert [cell["fill"] for cell in cells] == ["var(--series-1)"] * 5 + ["var(--series-2)"]
    assert float(cells[0]["y"]) > float(cells[3]["y"]), "layer 0 at the bottom"
    deep = heat_map("deep", range(5000), np.random.default_rng(0).random((126, 5000)))
    assert len(deep) < 200_000


def test_merging_keeps_the_largest_and_what_is_not_a_number() -> None:
    values = np.arange(24.0).reshape(4, 6)
    values[0, 0] = np.nan
    assert merge(values, 2, 3).tolist()[1] == [19.0, 21.0, 23.0]
    assert np.isnan(merge(values, 2, 3)[0, 0])
    assert merge(values, 2, 3)[0, 1:].tolist() == [9.0, 11.0]
