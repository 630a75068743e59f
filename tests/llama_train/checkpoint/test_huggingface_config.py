import dataclasses
import json

import pytest
from transformers import AutoConfig

from llama_foundation.errors import CheckpointError
from llama_train.checkpoint.huggingface_config import from_huggingface, to_huggingface
from llama_train.config import ModelConfig, RopeScaling

LLAMA_2 = ModelConfig(
    name="x", vocab_size=100, hidden_size=48, layers=2, heads=6, kv_heads=2, ffn_size=80, context=64, norm_epsilon=1e-6
)
LLAMA_3_1 = dataclasses.replace(
    LLAMA_2, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32), tied_embeddings=True
)


@pytest.mark.parametrize("config", [LLAMA_2, LLAMA_3_1], ids=["llama 2", "llama 3.1"])
def test_transformers_reads_every_field_and_we_read_what_transformers_writes(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(to_huggingface(config, "bfloat16", 1, 2)))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "LlamaConfig"
    assert (theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size) == (100, 48, 80)
    assert (theirs.num_hidden_layers, theirs.num_attention_heads, theirs.num_key_value_heads) == (2, 6, 2)
    assert (theirs.max_position_embeddings, theirs.rms_norm_eps, theirs.head_dim) == (64, 1e-6, 8)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    assert str(theirs.dtype) == "torch.bfloat16"
    assert theirs.tie_word_embeddings is config.tied_embeddings
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == config.rope_theta
    if config.rope_scaling:
        assert rope["rope_type"] == "llama3"
        assert (rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]) == (8.0, 1.0, 4.0)
        assert rope["original_max_position_embeddings"] == 32
    else:
        assert rope["rope_type"] == "default"

    theirs.save_pretrained(tmp_path)  # now in the form of this transformers
    again = from_huggingface(json.loads((tmp_path / "config.json").read_text()), tmp_path / "config.json")
    assert dataclasses.replace(again, name="x") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'; only llama"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear' is not supported"),
        ({"rope_scaling": [1]}, "rope_scaling is not an object"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor=None must be a number"),
        ({"head_dim": 16}, "head_dim=16 is not supported"),
        ({"num_key_value_heads": 4}, "model.kv_heads=4 does not divide model.heads=6"),
        ({"hidden_size": "48"}, "hidden_size='48' must be a number above 0"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_our_llama_does_not_have_is_refused_by_field(tmp_path, change, message):
    value = to_huggingface(LLAMA_2, "float32", 1, 2) | change
    with pytest.raises(CheckpointError, match=message):
        from_huggingface(value, tmp_path / "config.json")
