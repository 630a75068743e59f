"""Layouts are resolved or refused before anything starts."""

import pytest

from llama_foundation.errors import ConfigError
from llama_train.config import DataConfig, LayoutConfig, Segment
from llama_train.parallel.layout import resolve_layout


def data(batch_size: int, segments: list[Segment] | None = None) -> DataConfig:
    return DataConfig(shards="x", sequence_length=8, batch_size=batch_size, segments=segments or [])


def test_what_is_left_open_takes_the_processes_that_are_left() -> None:
    layout = resolve_layout(LayoutConfig(data_replicate=2), data(16), world_size=8, rank=5)
    assert (layout.data_replicate, layout.data_shard, layout.data_world, layout.data_rank) == (2, 4, 8, 5)


def test_sizes_that_do_not_give_the_world_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layout\.data_replicate=1 × layout\.data_shard=3 .* 4 processes"):
        resolve_layout(LayoutConfig(data_shard=3), data(12), world_size=4)
    with pytest.raises(ConfigError, match=r"layout\.data_replicate=3"):
        resolve_layout(LayoutConfig(data_replicate=3), data(12), world_size=4)


@pytest.mark.parametrize(
    ("batch_size", "micro", "advice"),
    [(6, 1, "batch_size=4 or 8"), (8, 3, r"micro_batch_size=1, 2$"), (2, 1, "batch_size=4$")],
)
def test_a_batch_that_does_not_divide_gets_the_choices_that_do(batch_size: int, micro: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.batch_size={batch_size} .*{advice}"):
        resolve_layout(LayoutConfig(micro_batch_size=micro), data(batch_size), world_size=4)


def test_a_later_segment_must_divide_too() -> None:
    segments = [Segment(from_step=10, batch_size=6)]
    with pytest.raises(ConfigError, match=r"data\.segments\[0\]\.batch_size=6"):
        resolve_layout(LayoutConfig(), data(8, segments), world_size=4)


def test_axes_that_this_version_does_not_run_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"layout\.tensor=2"):
        resolve_layout(LayoutConfig(tensor=2), data(8), world_size=4)
