"""A random Llama that is made in milliseconds, by transformers and by us, and a text for its tokenizer to learn."""

from typing import Any

import torch
import transformers

from llama_train.config import ModelConfig

TEXT = "The miller's daughter counted 17 lanterns, and then the river took them all. " * 20


def random_llama(seed: int = 0, **changes: Any) -> transformers.LlamaForCausalLM:
    """Two layers, with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes})).eval()


def tiny_config(**changes: Any) -> ModelConfig:
    """The configuration of the same shape."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_size": 48}
    return ModelConfig(**{"name": "tiny", "context": 64, **sizes, **changes})
