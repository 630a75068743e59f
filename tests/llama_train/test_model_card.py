import dataclasses
import json
import shutil

import pytest
import torch
import yaml

from llama_foundation import compose
from llama_train.checkpoint.load import open_weights
from llama_train.checkpoint.store import CheckpointStore
from llama_train.config import TrainConfig
from llama_train.data.order import TokenOrder
from llama_train.engine.engine import Chunk
from llama_train.model.names import parameter_shapes
from llama_train.model_card import model_card
from llama_train.run import to_container


@pytest.fixture
def finished_run(tiny, tiny_shards, tmp_path):
    """What a run leaves: its last checkpoint and its metrics, with shards that can be taken away."""
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    config = compose.compose("train", TrainConfig, [*tiny, f"data.shards={shards}"])
    order = TokenOrder(config.data, config.steps, config.seed)
    state = {
        "step": 12,
        "tokens": 1500,
        "config": to_container(config),
        "model": dataclasses.asdict(config.model),
        "tokenizer": "abc123",
        "data_fingerprint": order.fingerprint,
        "amendments": [],
    }
    chunks = [Chunk("weights/" + n, s, (0,) * len(s), torch.ones(s)) for n, s in parameter_shapes(config.model).items()]
    CheckpointStore(tmp_path / "run/checkpoints").save(12, chunks, state)
    (tmp_path / "run/summary.json").write_text(json.dumps({"steps": 12, "loss_last": 3.25, "validation_loss": 3.5}))
    return tmp_path / "run", config, order, shards


def test_a_card_tells_what_the_run_recorded(finished_run):
    run, config, order, _ = finished_run
    card = model_card(open_weights(run), "bfloat16")
    for line in (
        f"| layers | {config.model.layers} |",
        f"| vocabulary | {config.model.vocab_size} |",
        "| dtype of the weights | bfloat16 |",
        "| optimizer steps | 12 |",
        "| tokens | 1,500 |",
        "| training loss at the last step | 3.2500 nats per token |",
        "| validation loss | 3.5000 nats per token |",
        "| tokenizer fingerprint | `abc123` |",
        "Licence: to be chosen",
    ):
        assert line in card, card
    parameters = sum(torch.Size(shape).numel() for shape in parameter_shapes(config.model).values())
    assert f"| parameters | {parameters:,} |" in card
    for source, epochs in order.epochs(12).items():
        assert f"| {source} | {order.root.open('train', source).tokens:,} | {epochs:.2f} |" in card
    told = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert told["optimizer"]["learning_rate"] == 0.01
    assert "logging" not in told


def test_a_card_says_what_is_not_known(finished_run, tmp_path):
    run, config, _, shards = finished_run
    shutil.rmtree(shards)
    (run / "summary.json").unlink()
    card = model_card(open_weights(run))
    assert "| validation loss | not recorded |" in card
    assert "The shards are not here" in card
    (tmp_path / "run/summary.json").write_text(json.dumps({"steps": 13, "loss_last": 1.0, "validation_loss": 1.0}))
    assert "| validation loss | not recorded |" in model_card(open_weights(run)), "of another step"
    bare = CheckpointStore(tmp_path / "bare")
    chunks = [Chunk("weights/" + n, s, (0,) * len(s), torch.ones(s)) for n, s in parameter_shapes(config.model).items()]
    bare.save(0, chunks, {"model": dataclasses.asdict(config.model)})
    card = model_card(open_weights(tmp_path / "bare"))
    assert "Not recorded: the weights came without the record of a run." in card
    assert card.count("not recorded") == 6
