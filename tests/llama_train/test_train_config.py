"""Contradictions between settings are found before anything starts, and the message says the fix."""

import pytest

from llama_foundation.errors import ConfigError
from llama_train.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleName,
    Segment,
    TrainConfig,
)


def config(**changes: object) -> TrainConfig:
    model = ModelConfig(
        name="t", vocab_size=100, hidden_size=48, layers=2, heads=4, kv_heads=2, ffn_size=64, context=32
    )
    values = {
        "steps": 10,
        "model": model,
        "data": DataConfig(shards="x", sequence_length=32, batch_size=4),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        **changes,
    }
    return TrainConfig(**values)


def test_a_consistent_configuration_passes() -> None:
    config().check()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("heads", 5, r"model\.heads=5 does not divide model\.hidden_size=48; use one of 1, 2, 3, 4, 6"),
        ("heads", 16, "heads of 3 elements"),
        ("kv_heads", 3, r"model\.kv_heads=3 does not divide model\.heads=4; use one of 1, 2, 4"),
        ("layers", 0, r"model\.layers=0 must be at least 1"),
        ("context", 16, r"data\.sequence_length=32 is longer than model\.context=16"),
    ],
)
def test_a_bad_model_is_named(field: str, value: int, message: str) -> None:
    bad = config()
    setattr(bad.model, field, value)
    with pytest.raises(ConfigError, match=message):
        bad.check()


def test_a_later_segment_may_not_exceed_the_context_either() -> None:
    data = DataConfig(shards="x", sequence_length=16, batch_size=4, segments=[Segment(from_step=5, sequence_length=64)])
    with pytest.raises(ConfigError, match=r"data\.sequence_length=64"):
        config(data=data).check()


def test_segments_out_of_order_are_refused() -> None:
    segments = [Segment(from_step=5), Segment(from_step=5)]
    with pytest.raises(ConfigError, match=r"data\.segments\[1\]\.from_step=5 must be greater than 5"):
        config(data=DataConfig(shards="x", sequence_length=8, batch_size=4, segments=segments)).check()


def test_weights_must_be_weights() -> None:
    for sources, message in (({"a": -1.0}, r"data\.sources\.a=-1"), ({"a": 0.0}, "at least one weight")):
        with pytest.raises(ConfigError, match=message):
            config(data=DataConfig(shards="x", sequence_length=8, batch_size=4, sources=sources)).check()


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=11"):
        config(schedule=ScheduleConfig(warmup_steps=11)).check()
    with pytest.raises(ConfigError, match=r"schedule\.decay_steps=null"):
        config(schedule=ScheduleConfig(name=ScheduleName.warmup_stable_decay)).check()


def test_a_deadline_after_which_nobody_waits_any_more_is_refused() -> None:
    bad = config()
    bad.survive.deadlines.data = 700.0
    with pytest.raises(ConfigError, match=r"survive\.deadlines\.data=700 is above engine\.timeout_seconds=600"):
        bad.check()
    bad.survive.deadlines.data = 0.0
    with pytest.raises(ConfigError, match=r"survive\.deadlines\.data=0\.0 must be between 1"):
        bad.check()
    bad.survive.deadlines.data = 60.0
    bad.check()
    assert bad.survive.deadlines.by_phase() == {"start": 1800.0, "data": 60.0}


@pytest.mark.parametrize("name", ["", "/etc", "../elsewhere", ".hidden", "a/../../b"])
def test_a_run_cannot_leave_its_output(name: str) -> None:
    with pytest.raises(ConfigError, match="name="):
        config(name=name).check()
