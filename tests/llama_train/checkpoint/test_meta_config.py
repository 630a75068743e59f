from pathlib import Path

import pytest

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.meta_config import ffn_rule, ffn_size, from_params, to_params
from llama_train.config import RopeScaling

# published params.json and width: Llama 1 7B and 65B, Llama 2 70B, Llama 3 8B, 3.1 405B, 3.2 1B and 3B
PUBLISHED = [
    (4096, 256, None, 11008),
    (8192, 256, None, 22016),
    (8192, 4096, 1.3, 28672),
    (4096, 1024, 1.3, 14336),
    (16384, 4096, 1.2, 53248),
    (2048, 256, 1.5, 8192),
    (3072, 256, 1.0, 8192),
]
LLAMA_3 = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}
WHERE = Path("8B/params.json")


@pytest.mark.parametrize(("hidden", "multiple_of", "multiplier", "width"), PUBLISHED)
def test_the_feed_forward_widths_are_the_published_ones(hidden, multiple_of, multiplier, width):
    assert ffn_size(hidden, multiple_of, multiplier) == width
    assert ffn_size(hidden, *ffn_rule(hidden, width)) == width


def test_every_width_has_a_rule():
    for hidden in (2, 32, 100, 4096):
        for width in (1, 7, 96, 1000, 11009, 65536):
            assert ffn_size(hidden, *ffn_rule(hidden, width)) == width


def test_the_context_and_rotary_scaling_are_those_of_the_release():
    llama_1 = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-6, "vocab_size": -1}

    def read(params, vocabulary, tied=False, context=None):
        config = from_params(params, WHERE, vocabulary, tied, context)
        return config.context, config.rope_scaling

    assert read(llama_1, 32000) == (2048, None)
    assert read(llama_1 | {"norm_eps": 1e-5}, 32000) == (4096, None)
    assert read(llama_1 | {"norm_eps": 1e-5, "rope_theta": 1e6}, 32016) == (16384, None)
    assert read(LLAMA_3, 128256) == (8192, None)
    assert read(LLAMA_3, 128256, context=1000) == (1000, None)
    scaled = LLAMA_3 | {"use_scaled_rope": True}
    assert read(scaled, 128256) == (131072, RopeScaling(8.0, 1.0, 4.0, 8192))
    assert read(scaled, 128256, tied=True) == (131072, RopeScaling(32.0, 1.0, 4.0, 8192))  # Llama 3.2
    assert read(scaled | {"rope_scaling_factor": 16.0}, 128256) == (131072, RopeScaling(16.0, 1.0, 4.0, 8192))


def test_a_published_params_json_is_written_as_it_was_read():
    scaled = LLAMA_3 | {"use_scaled_rope": True}
    assert to_params(from_params(LLAMA_3, WHERE, 128256, False)) == LLAMA_3
    assert to_params(from_params(scaled, WHERE, 128256, False)) == scaled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 5}, "vocab_size=5, but the embeddings have 128256 rows"),
        ({"moe_args": {"experts": 8}}, "moe_args=.* is not supported"),
        ({"dim": "big"}, "dim='big' must be a number above 0"),
        ({"n_heads": 5}, "does not divide"),
        ({"use_scaled_rope": 1}, "use_scaled_rope=1 must be true or false"),
    ],
)
def test_params_that_are_no_llama_are_refused_by_name(change, message):
    with pytest.raises(CheckpointError, match=rf"8B/params\.json: .*{message}"):
        from_params(LLAMA_3 | change, WHERE, 128256, False)
