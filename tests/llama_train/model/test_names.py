import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaConfig, LlamaForCausalLM

from llama_train.config import ModelConfig
from llama_train.model.llama import Llama
from llama_train.model.names import canonical_name, canonical_parameters, decays, parameter_shapes

CONFIG = ModelConfig("small", 40, 24, layers=2, heads=4, kv_heads=2, ffn_size=36, context=16)
TIED = ModelConfig("tied", 40, 24, layers=2, heads=4, kv_heads=4, ffn_size=36, context=16, tied_embeddings=True)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_names_and_shapes_are_transformers(config):
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=24,
                intermediate_size=36,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=config.kv_heads,
                tie_word_embeddings=config.tied_embeddings,
            )
        )
        ours = Llama(config)
    expected = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    if config.tied_embeddings:
        expected.pop("lm_head.weight", None)  # on the meta device transformers leaves the tie for later
    assert parameter_shapes(config) == expected
    assert {name: tuple(p.shape) for name, p in canonical_parameters(ours)} == expected


def test_shapes_come_in_the_order_of_the_modules():
    assert list(parameter_shapes(CONFIG))[1:] != sorted(parameter_shapes(CONFIG))[1:]
    with torch.device("meta"):
        names = [name for name, _ in canonical_parameters(Llama(CONFIG))]
    assert sorted(names) == sorted(parameter_shapes(CONFIG))
    assert (names[0], names[-2:]) == ("model.embed_tokens.weight", ["model.norm.weight", "lm_head.weight"])


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_wrappers_leave_no_trace_in_names():
    model = Llama(CONFIG)
    expected = [name for name, _ in canonical_parameters(model)]
    for layer in list(model.model.layers):
        model.model.layers[layer] = torch.compile(checkpoint_wrapper(model.model.layers[layer]))
    raw = [name for name, _ in model.named_parameters()]
    assert any("_orig_mod." in name and "_checkpoint_wrapped_module." in name for name in raw)
    assert [name for name, _ in canonical_parameters(model)] == expected
    assert canonical_name("_fsdp_wrapped_module.model._fsdp_wrapped_module.norm.weight") == "model.norm.weight"


def test_only_norms_are_not_decayed():
    kept = {name for name in parameter_shapes(CONFIG) if not decays(name)}
    assert kept == {
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.norm.weight",
    }
