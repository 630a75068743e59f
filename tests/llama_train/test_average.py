import dataclasses
import os
import re
import subprocess
import sys

import pytest
import torch

from llama_foundation import compose
from llama_foundation.errors import CheckpointError, ConfigError
from llama_train.average import AverageConfig, Mode, average, member_weights, run
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.checkpoint.restore import open_checkpoint
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import ModelConfig
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes

TINY = ModelConfig(name="tiny", vocab_size=101, hidden_size=16, layers=1, heads=2, kv_heads=1, ffn_size=24, context=32)


def save(directory, steps, config=TINY, dtype=torch.float32, **state):
    """A run's checkpoints; return their tensors, one dictionary for each step."""
    saved = []
    store = CheckpointStore(directory / "checkpoints", keep_last=9)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in parameter_shapes(config).items()}
        chunks = [Chunk("weights/" + n, tuple(t.shape), (0,) * t.dim(), t) for n, t in tensors.items()]
        chunks += [Chunk("optimizer/exp_avg/" + n, tuple(t.shape), (0,) * t.dim(), t) for n, t in tensors.items()]
        store.save(step, chunks, {"step": step, "model": dataclasses.asdict(config)} | state)
        saved.append(tensors)
    return saved


def read_all(directory):
    source = open_weights(directory)
    return {
        name.removeprefix("weights/"): source.read(name, (0,) * len(entry.shape), entry.shape)
        for name, entry in source.tensors.items()
    }


def test_the_moving_average_is_what_would_have_been_kept_step_by_step():
    values = [3.0, -1.0, 4.0, 1.5]
    kept = values[0]
    for value in values[1:]:
        kept = 0.7 * kept + 0.3 * value
    weights = member_weights(Mode.ema, 4, decay=0.7)
    assert sum(weights) == pytest.approx(1)
    assert sum(w * v for w, v in zip(weights, values, strict=True)) == pytest.approx(kept)
    assert member_weights(Mode.uniform, 4) == [0.25] * 4
    assert member_weights(Mode.weighted, 3, [2, 1, 1]) == [0.5, 0.25, 0.25]


def test_the_average_is_the_weighted_sum_in_float64_and_a_native_checkpoint(tmp_path):
    tensors = save(tmp_path / "run", [2, 4, 6], dtype=torch.bfloat16, tokens=7, engine={"adamw_step": 6.0})
    run(AverageConfig(output=str(tmp_path / "out"), run=str(tmp_path / "run"), last=2, mode=Mode.ema, decay=0.25))
    found = read_all(tmp_path / "out")
    for name, tensor in found.items():
        expected = 0.25 * tensors[1][name].double() + 0.75 * tensors[2][name].double()
        assert torch.equal(tensor, expected.bfloat16()), name
    checkpoint = open_checkpoint(tmp_path / "out")
    assert set(found) == set(parameter_shapes(TINY))  # no optimizer state
    assert (checkpoint.step, checkpoint.state["tokens"]) == (6, 7)
    assert "engine" not in checkpoint.state
    assert checkpoint.state["averaged"] == {
        "mode": "ema",
        "members": [
            {"directory": f"{tmp_path}/run/checkpoints/step-0000000{step}", "step": step, "weight": weight}
            for step, weight in ((4, 0.25), (6, 0.75))
        ],
    }
    model, config, _ = load_model(tmp_path / "out")
    assert config == TINY
    assert torch.equal(model.model.norm.weight, found["model.norm.weight"].float())


def test_sums_do_not_lose_what_float32_would(tmp_path):
    """1e8 + 1 - 1e8: in float32 the 1 is lost."""
    store = CheckpointStore(tmp_path / "run/checkpoints", keep_last=9)
    for step, value in enumerate((1e8, 1.0, -1e8), start=1):
        chunks = [
            Chunk("weights/" + n, s, (0,) * len(s), torch.full(s, value)) for n, s in parameter_shapes(TINY).items()
        ]
        store.save(step, chunks, {"step": step, "model": dataclasses.asdict(TINY)})
    sources = [open_weights(path) for path in sorted((tmp_path / "run/checkpoints").iterdir())]
    average(sources, [1, 1, 1], tmp_path / "out")
    assert read_all(tmp_path / "out")["model.norm.weight"].unique().tolist() == [1.0]


def test_different_models_are_refused_by_name(tmp_path):
    save(tmp_path / "a", [1])
    save(tmp_path / "b", [1], dataclasses.replace(TINY, rope_theta=5e5))
    save(tmp_path / "c", [1], tokenizer="one")
    save(tmp_path / "d", [1], tokenizer="two")

    def averaged(*names):
        run(AverageConfig(output=str(tmp_path / "out"), inputs=[str(tmp_path / name) for name in names]))

    with pytest.raises(CheckpointError, match=r"/a/.* is another model than .*/b/.*: model\.rope_theta is 10000\.0"):
        averaged("a", "b")
    with pytest.raises(CheckpointError, match=r"/c/.* trained with another tokenizer than .*/d/.*: one there and two"):
        averaged("c", "d")
    assert not (tmp_path / "out").exists()
    averaged("a", "c")
    with pytest.raises(CheckpointError, match="already exists and is not empty"):
        averaged("a", "c")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "give either inputs=.* or run="),
        (["inputs=[a]", "run=b"], "give either inputs=.* or run="),
        (["run=b", "last=0"], "last=0 must be at least 1"),
        (["run=b", "mode=median"], "mode=median"),
        (["run=b", "mode=weighted"], "weights go with mode=weighted"),
        (["run=b", "weights=[1,2]"], "weights go with mode=weighted"),
        (["inputs=[a,b]", "mode=weighted", "weights=[1,-1]"], "must be numbers of at least 0"),
        (["run=b", "mode=ema", "decay=1"], r"decay=1\.0 must be"),
        (["run=b", "evaluate.batches=0"], r"evaluate\.batches=0 must be at least 1"),
    ],
)
def test_settings_are_checked(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose("average", AverageConfig, ["output=x", *overrides])


def test_too_few_checkpoints_and_weights_are_refused(tmp_path):
    save(tmp_path / "run", [1, 2])
    with pytest.raises(ConfigError, match=r"has 2 checkpoints, last=4 asks for more; use last=2 or less"):
        run(AverageConfig(output=str(tmp_path / "out"), run=str(tmp_path / "run")))
    config = AverageConfig(output=str(tmp_path / "out"), run=str(tmp_path / "run"), last=2, mode=Mode.weighted)
    with pytest.raises(ConfigError, match=r"are 3, but there are 2 inputs"):
        run(dataclasses.replace(config, weights=[1.0, 1.0, 1.0]))


def test_the_command_compares_the_average_with_its_members(tmp_path, tiny_shards):
    save(tmp_path / "run", [1, 2])
    arguments = [f"run={tmp_path / 'run'}", "last=2", f"output={tmp_path / 'out'}", f"evaluate.shards={tiny_shards}"]
    done = subprocess.run(
        [sys.executable, "-m", "llama_train.average", *arguments, "evaluate.batches=2"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    losses = {m[1]: float(m[2]) for m in re.finditer(r"^(\S+) +[\d.]+ +(\d+\.\d+)$", done.stdout, re.MULTILINE)}
    steps = [f"{tmp_path}/run/checkpoints/step-0000000{step}" for step in (1, 2)]
    assert list(losses) == [*steps, f"{tmp_path}/out"]
    # an independent sum over the first 8 windows of validation, as plain cross-entropy
    from data_pipeline.shards.reader import open_root
    from llama_train.config import DataConfig
    from llama_train.data.batches import validation_micro_batches

    model, _, _ = load_model(steps[0], dtype=torch.float64)
    data = DataConfig(shards=str(tiny_shards), sequence_length=32, batch_size=8)
    root, total, tokens = open_root(tiny_shards), 0.0, 0
    for source in root.sources("validation"):
        for part in validation_micro_batches(root, data, source, 1, 0, 1, 8):
            with torch.no_grad():
                likely = model(part.tokens, None, part.document_ids, part.positions).log_softmax(-1)
            counted = part.labels >= 0
            picked = likely.gather(-1, part.labels.clamp(min=0)[..., None])[..., 0]
            total, tokens = total - float(picked[counted].sum()), tokens + int(counted.sum())
    assert losses[steps[0]] == pytest.approx(total / tokens, abs=2e-5)
    assert len(set(losses.values())) == 3
