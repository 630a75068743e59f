"""What a proof of DeepSpeed's engine (`tests/llama_train/prove/test_prove_zero.py`) leaves out, on two processes.

Float32 sums in another order are not equal: two runs agree where they differ by no more than four times what the same
reference differs by when its batch is cut into micro-batches in other ways, and by at most `MOST`.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_foundation import compose
from llama_train.checkpoint.huggingface import import_native
from llama_train.checkpoint.huggingface_config import to_huggingface
from llama_train.checkpoint.load import open_weights
from llama_train.checkpoint.restore import Checkpoint, open_checkpoint
from llama_train.config import TrainConfig
from llama_train.model.initialize import initial_values
from llama_train.prove.harness import make_shards, whole
from llama_train.prove.zero_sizes import with_shrunk_sizes
from tests.llama_train.conftest import environment
from tests.llama_train.engine.engine_runs import Leg, run_leg

STEPS = 20
MOST = 5e-6
BF16 = 1e-2
ZERO = {stage: ("engine=deepspeed", f"engine.zero_stage={stage}") for stage in (1, 2, 3)}


def configured(directory: Path, *overrides: str) -> TrainConfig:
    """A model of 2 layers that divides over nothing, clipped at every step; DeepSpeed cuts it as a large one."""
    base = ["model=tiny", "model.vocab_size=101", "model.initial_std=0.1", "model.context=32", "steps=20"]
    base += ["data.sequence_length=32", "data.batch_size=8", f"data.shards={directory / 'shards'}"]
    base += ["optimizer.learning_rate=3e-3", "optimizer.max_grad_norm=0.5", "schedule.warmup_steps=4"]
    base += ["cluster.device=cpu", "layout.micro_batch_size=2"]
    config = compose.compose("train", TrainConfig, [*base, *overrides])
    # Whole on NVMe: DeepSpeed keeps what is under 1 MiB in memory.
    return config if config.engine.nvme_path is not None else with_shrunk_sizes(config, directory)


@dataclasses.dataclass(frozen=True)
class Reference:
    """One process with one micro-batch, and what it differs by from itself in other micro-batches."""

    directory: Path
    steps: list[dict[str, Any]]
    spread: dict[str, float]

    def check(self, steps: list[dict[str, Any]]) -> None:
        expected = self.steps[: len(steps)]
        assert [step["tokens"] for step in steps] == [step["tokens"] for step in expected]
        assert all(step["grad_norm"] > 0.5 for step in expected)  # clipping is active
        for key in ("loss", "grad_norm"):
            bound = min(4 * self.spread[key], MOST)
            assert difference(steps, expected, key) <= bound, (key, bound)


def difference(steps: list[dict[str, Any]], expected: list[dict[str, Any]], key: str) -> float:
    return max(abs(a[key] - b[key]) for a, b in zip(steps, expected, strict=True))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("engines")
    make_shards(directory / "shards", 101, 2 * STEPS * 8 * 32)
    splits = {}
    for size in (8, 4, 2, 1):
        config = configured(directory, f"layout.micro_batch_size={size}")
        splits[size] = run_leg(Leg(config, 1, 0, STEPS, gradients=True), directory / f"by-{size}")
    spread = {
        key: max(difference(a, b, key) for a in splits.values() for b in splits.values())
        for key in ("loss", "grad_norm")
    }
    return Reference(directory, splits[8], spread)


@pytest.mark.parametrize("stage", ZERO)
def test_zero_does_what_one_process_does(reference: Reference, stage: int) -> None:
    place = reference.directory / f"zero-{stage}"
    steps = run_leg(Leg(configured(reference.directory, *ZERO[stage]), 2, 0, STEPS, gradients=True), place)
    reference.check(steps)
    ours, theirs = open_checkpoint(place / "gradients"), open_checkpoint(reference.directory / "by-8" / "gradients")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in theirs.tensors:
        if name.startswith("gradients/"):
            assert_close(ours, theirs, name, 2e-6)
    ours, theirs = last(place), last(reference.directory / "by-8")
    assert ours.tensors.keys() == theirs.tensors.keys() and len(ours.tensors) == 3 * (2 * 9 + 3)
    for name in theirs.tensors:
        assert_close(ours, theirs, name, 1e-3)  # AdamW's quotient enlarges what is different in small gradients
    assert ours.state["engine"] == {"adamw_step": STEPS}
    evaluated = [json.loads((where / "evaluated.json").read_text()) for where in (place, reference.directory / "by-8")]
    assert evaluated[0][1] == evaluated[1][1]
    assert evaluated[0][0] == pytest.approx(evaluated[1][0], rel=1e-5)


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_bf16_starts_from_unrounded_weights_and_stays_within_its_noise(reference: Reference, stage: int) -> None:
    place = reference.directory / f"bf16-{stage}"
    config = configured(reference.directory, *ZERO[stage], "engine.precision=bf16")
    steps = run_leg(Leg(config, 2, 0, STEPS), place)
    assert difference(steps, reference.steps, "loss") <= BF16
    assert difference(steps, reference.steps, "loss") > MOST  # it is bf16
    started = open_checkpoint(place / "step-00000000")
    for name, entry in started.tensors.items():
        values = whole(started, name)
        assert entry.dtype is torch.float32
        if name.startswith("weights/"):
            canonical, origin = name.removeprefix("weights/"), (0,) * len(entry.shape)
            assert torch.equal(
                values, initial_values(config.seed, canonical, entry.shape, origin, entry.shape, config.model)
            )
        else:
            assert not values.any()


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(3, "fp32"), (2, "fp32"), pytest.param(1, "bf16", marks=pytest.mark.slow)],
)
def test_what_deepspeed_saves_itself_is_imported_bit_for_bit(reference: Reference, stage: int, precision: str) -> None:
    place = saved_by_deepspeed(reference, stage, precision)
    assert_imported_bit_for_bit(place / "ds", place)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_its_ds_to_universal_makes_of_that_is_imported_bit_for_bit(reference: Reference, stage: int) -> None:
    place = saved_by_deepspeed(reference, stage, "fp32")
    tag = (place / "ds" / "latest").read_text()
    folders = [f"--input_folder={place / 'ds' / tag}", f"--output_folder={place / 'universal' / tag}"]
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, "--inject_missing_state"]
    workers = ["--num_extract_workers=1", "--num_merge_workers=1"]
    subprocess.run([*convert, *workers], env=environment(), check=True, capture_output=True)
    (place / "universal" / "config.json").write_text((place / "ds" / "config.json").read_text())
    assert_imported_bit_for_bit(place / "universal" / tag, place)


def saved_by_deepspeed(reference: Reference, stage: int, precision: str) -> Path:
    """Return where three steps left their checkpoint, and in ds/ DeepSpeed its own."""
    place = reference.directory / f"saved-{stage}-{precision}"
    if not place.exists():
        config = configured(reference.directory, *ZERO[stage], f"engine.precision={precision}")
        run_leg(Leg(config, 2, 0, 3, saved_by_deepspeed=True), place)
        (place / "ds" / "config.json").write_text(json.dumps(to_huggingface(config.model, "float32", 1, 2)))
    return place


def assert_imported_bit_for_bit(directory: Path, place: Path) -> None:
    imported = place / f"imported-{directory.parent.name}"
    import_native(open_weights(directory), imported)
    ours, theirs = open_checkpoint(imported), open_checkpoint(place / "step-00000003")
    assert ours.tensors.keys() == theirs.tensors.keys() and len(ours.tensors) == 3 * (2 * 9 + 3)
    for name in theirs.tensors:
        assert torch.equal(whole(ours, name), whole(theirs, name)), name
    assert ours.state["engine"] == theirs.state["engine"] == {"adamw_step": 3}


@pytest.mark.parametrize(
    ("stage", "switches"),
    [
        (3, ("engine.offload_optimizer=cpu", "engine.offload_parameters=cpu", "engine.activation_checkpointing=full")),
        (2, ("engine.offload_optimizer=cpu", "engine.loss_chunk=10", "engine.activation_checkpointing=selective")),
        (3, ("engine.loss_chunk=0", "model.tied_embeddings=true", "engine.activation_checkpointing=every_n")),
    ],
    ids=["all-offloaded", "optimizer-offloaded", "tied"],
)
def test_switches_change_nothing_and_a_step_that_is_not_finite_leaves_no_trace(
    reference: Reference, stage: int, switches: tuple[str, ...]
) -> None:
    place = reference.directory / f"switched-{stage}-{len(switches[0])}"
    expected = reference.steps
    if "model.tied_embeddings=true" in switches:
        tied = configured(reference.directory, "model.tied_embeddings=true", "layout.micro_batch_size=8")
        expected = run_leg(Leg(tied, 1, 0, 4), reference.directory / "tied")
    config = configured(reference.directory, *ZERO[stage], *switches)
    steps = run_leg(Leg(config, 2, 0, 4, poisoned=1), place)
    for key in ("loss", "grad_norm"):
        assert difference(steps, expected[:4], key) <= MOST


@pytest.mark.slow  # the first time on a machine DeepSpeed builds its file reader, in minutes
@pytest.mark.parametrize("offloaded", ["optimizer", "parameters", "both"])
def test_what_lies_on_nvme_is_updated_saved_and_resumed(reference: Reference, offloaded: str) -> None:
    """With so large a vocabulary that the matrices' master is written to files: under 1 MiB DeepSpeed keeps it."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        pytest.skip("no libaio")
    place = reference.directory / f"nvme-{offloaded}"
    (place / "files").mkdir(parents=True)
    large = ["model.vocab_size=20001", "layout.micro_batch_size=2"]
    alone = run_leg(Leg(configured(reference.directory, *large), 1, 0, 6), place / "alone")
    where = {"optimizer": "cpu", "parameters": "cpu"}
    where |= dict.fromkeys(where if offloaded == "both" else [offloaded], "nvme")
    switches = [f"engine.offload_{name}={device}" for name, device in where.items()]
    if where["parameters"] == "nvme":  # else the first 1e9 elements stay in memory
        (place / "ds.json").write_text(json.dumps({"zero_optimization": {"offload_param": {"max_in_cpu": 0}}}))
        switches.append(f"engine.config_file={place / 'ds.json'}")
    config = configured(reference.directory, *ZERO[3], *large, *switches, f"engine.nvme_path={place / 'files'}")
    begun = run_leg(Leg(config, 2, 0, 3, poisoned=1), place / "begun")
    assert sum(file.stat().st_size for file in (place / "files").rglob("*.swp")) > 2**20
    resumed = run_leg(Leg(config, 2, 3, 6, resume=place / "begun" / "step-00000003"), place / "resumed")
    for key in ("loss", "grad_norm"):
        assert difference(begun + resumed, alone, key) <= MOST
    ours, theirs = (open_checkpoint(where / "step-00000006") for where in (place / "resumed", place / "alone"))
    for name in theirs.tensors:
        assert_close(ours, theirs, name, 1e-3)


@pytest.mark.slow
def test_compiled_blocks_do_what_others_do(reference: Reference) -> None:
    config = configured(reference.directory, *ZERO[2], "engine.compile=true")
    reference.check(run_leg(Leg(config, 2, 0, 4), reference.directory / "compiled"))


def last(directory: Path) -> Checkpoint:
    return open_checkpoint(directory / f"step-{STEPS:08d}")


def assert_close(ours: Checkpoint, theirs: Checkpoint, name: str, tolerance: float) -> None:
    a, b = whole(ours, name), whole(theirs, name)
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), name
