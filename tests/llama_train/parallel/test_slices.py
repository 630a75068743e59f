"""The rectangles that ranks hold cover every parameter exactly once, whatever is cut."""

import numpy as np
import pytest

from llama_train.config import ModelConfig
from llama_train.model.names import parameter_shapes
from llama_train.parallel.layout import Layout
from llama_train.parallel.tensor import tensor_slice
from llama_train.parallel.vocabulary import padded_vocabulary


@pytest.mark.parametrize("vocabulary", [96, 97, 101, 5])
@pytest.mark.parametrize(("tensor", "kv_heads"), [(1, 8), (2, 4), (4, 4), (8, 8), (8, 2), (8, 1)])
def test_owners_cover_every_element_once_and_the_others_none_twice(tensor: int, kv_heads: int, vocabulary: int) -> None:
    config = ModelConfig("m", vocabulary, 32, 1, 8, kv_heads, 48, 64)
    for name, shape in parameter_shapes(config).items():
        owned, held = np.zeros(shape, int), np.zeros(shape, int)
        for rank in range(tensor):
            part = tensor_slice(name, shape, config, Layout(1, 1, rank, 1, tensor=tensor))
            place = [slice(None)] * len(shape)
            if part.dimension is not None:
                place[part.dimension] = slice(part.start, part.start + part.length)
                assert part.start + part.length <= shape[part.dimension]
            held[tuple(place)] += 1
            owned[tuple(place)] += part.owner
        assert (owned == 1).all(), name
        assert held.min() == held.max() in (1, tensor), name


def test_a_vocabulary_is_filled_up_to_the_next_multiple() -> None:
    assert [padded_vocabulary(size, 4) for size in (96, 97, 100, 101)] == [96, 100, 100, 104]
    assert padded_vocabulary(128256, 16) == 128256


def test_a_rank_beyond_a_small_vocabulary_holds_none_of_it() -> None:
    config = ModelConfig("m", 5, 32, 1, 8, 8, 48, 64)
    parts = [tensor_slice("lm_head.weight", (5, 32), config, Layout(1, 1, rank, 1, tensor=4)) for rank in range(4)]
    assert [(part.start, part.length) for part in parts] == [(0, 2), (2, 2), (4, 1), (5, 0)]
