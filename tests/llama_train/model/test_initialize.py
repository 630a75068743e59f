"""Initial weights against SplitMix64's published outputs, plain integers, and statistics."""

import hashlib
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_train.config import ModelConfig
from llama_train.model import initialize as module
from llama_train.model.initialize import initial_values, initialize, standard_deviation
from llama_train.model.llama import Llama
from llama_train.model.names import parameter_shapes

CONFIG = ModelConfig("small", 40, 24, layers=2, heads=4, kv_heads=2, ffn_size=36, context=16)
QUERY = "model.layers.0.self_attn.q_proj.weight"
MASK = (1 << 64) - 1


def whole(seed: int, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return initial_values(seed, name, shape, (0,) * len(shape), shape, CONFIG, dtype)


def expected_value(seed: int, name: str, element: int, deviation: float) -> float:
    """One weight by plain Python integers and statistics.NormalDist."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    z = (int.from_bytes(digest, "little") + (element + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    signed = z - (1 << 64) if z >> 63 else z
    inside = (2 * (signed >> 11) + 1) * 2.0**-53  # uniform in (-1, 1)
    normal = statistics.NormalDist()
    return normal.inv_cdf(0.5 + inside * (normal.cdf(3) - 0.5)) * deviation


def test_hash_gives_the_published_outputs_of_splitmix64():
    # The first five outputs for seed 1234567, as in https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    outputs = module._splitmix64(1234567, torch.arange(5))
    assert [value & MASK for value in outputs.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize(
    ("seed", "name", "deviation"),
    [
        (0, QUERY, 0.02),
        (123456789012345678901234567890, "lm_head.weight", 0.02),
        (-1, "model.layers.1.mlp.down_proj.weight", 0.02 / 2),  # 1/sqrt(2 * 2 layers)
    ],
)
def test_first_and_far_elements_by_hand(seed, name, deviation):
    first = whole(seed, name, (1, 4))[0]
    expected = torch.tensor([expected_value(seed, name, i, deviation) for i in range(4)])
    torch.testing.assert_close(first, expected, rtol=1.2e-7, atol=0)
    # Element 2^40 + 5 of a tensor far too large to make.
    far = initial_values(seed, name, (1 << 22, 1 << 20), (1 << 20, 5), (1, 1), CONFIG)
    assert far.item() == pytest.approx(expected_value(seed, name, (1 << 40) + 5, deviation), rel=1.2e-7)


def test_initial_weights_never_change():
    # Printed by expected_value and rounded to float32: a change of these bits would break every run's reproduction.
    assert [value.hex() for value in whole(0, QUERY, (1, 4))[0].tolist()] == [
        "-0x1.2a9fba0000000p-6",
        "-0x1.1af92e0000000p-7",
        "0x1.16f3ba0000000p-6",
        "0x1.953d120000000p-7",
    ]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_rectangle_made_in_any_pieces_has_the_bits_of_the_whole(data):
    shape = data.draw(st.sampled_from([(70, 130), (5, 700), (1, 9), (9, 1), (300,)]))
    offsets = tuple(data.draw(st.integers(0, size)) for size in shape)
    lengths = tuple(data.draw(st.integers(0, size - offset)) for size, offset in zip(shape, offsets, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", data.draw(st.sampled_from([1, 7, 64, 300, 1 << 16])))
        part = initial_values(3, QUERY, shape, offsets, lengths, CONFIG, torch.float64)
    expected = whole(3, QUERY, shape, torch.float64)
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        expected = expected.narrow(dimension, offset, length)
    assert torch.equal(part, expected)


def test_every_element_is_a_cut_of_the_whole():
    shape = (150, 1000)  # more than two pieces
    expected = whole(5, QUERY, shape)
    rows = [initial_values(5, QUERY, shape, (row, 0), (1, 1000), CONFIG) for row in range(150)]
    columns = [initial_values(5, QUERY, shape, (0, column), (150, 250), CONFIG) for column in range(0, 1000, 250)]
    assert torch.equal(torch.cat(rows), expected)
    assert torch.equal(torch.cat(columns, 1), expected)


def test_moments_and_cut_are_those_of_the_truncated_normal():
    size = 1_000_000
    values = whole(1, QUERY, (1000, 1000), torch.float64).flatten() / 0.02
    density = math.exp(-9 / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(3 / math.sqrt(2))
    variance = 1 - 2 * 3 * density / inside  # of a normal cut at 3 standard deviations
    fourth = 3 * variance - 2 * 27 * density / inside
    assert abs(values.mean()) < 5 * math.sqrt(variance / size)
    assert abs(values.pow(2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / size)
    assert abs(values.pow(4).mean() - fourth) < 0.05
    assert 2.99 < values.abs().max() <= 3.0000001
    # Kolmogorov-Smirnov: the largest distance to the distribution stays under 1.95/sqrt(n) in 999 of 1000 draws.
    ordered = values.sort().values
    ideal = (torch.erf(ordered / math.sqrt(2)) / inside + 1) / 2
    assert (ideal - (torch.arange(size) + 0.5) / size).abs().max() < 1.95 / math.sqrt(size)


def test_names_seeds_and_neighbours_are_uncorrelated():
    shape = (500, 1000)
    one = whole(1, QUERY, shape).flatten()
    others = {
        "another name": whole(1, QUERY.replace("layers.0", "layers.1"), shape).flatten(),
        "another seed": whole(2, QUERY, shape).flatten(),
        "the next element": one.roll(1),
        "the next row": one.roll(1000),
    }
    for label, other in others.items():
        correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(one.numel()), label
        assert not torch.equal(one, other)


def test_standard_deviations_by_name():
    assert standard_deviation("model.embed_tokens.weight", CONFIG) == 0.02
    assert standard_deviation("lm_head.weight", CONFIG) == 0.02
    assert standard_deviation("model.layers.1.mlp.up_proj.weight", CONFIG) == 0.02
    assert standard_deviation("model.layers.1.self_attn.o_proj.weight", CONFIG) == 0.01
    assert standard_deviation("model.layers.1.mlp.down_proj.weight", CONFIG) == 0.01
    assert torch.equal(whole(0, "model.layers.0.input_layernorm.weight", (24,)), torch.ones(24))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_whole_model_is_filled_from_the_same_float32_values(dtype):
    model = Llama(CONFIG).to(dtype)
    initialize(model, CONFIG, seed=4)
    parameters = dict(model.named_parameters())
    for name, shape in parameter_shapes(CONFIG).items():
        assert torch.equal(parameters[name], whole(4, name, shape).to(dtype)), name
