"""A tiny random Llama as llama-convert exports it, and tasks for it."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import transformers

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from llama_train.checkpoint.huggingface import export_huggingface
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.evaluate.score import Scorer
from llama_train.peers import Peers
from tests.llama_train.evaluate.made_up_tasks import EXAMPLES, TEXT
from tests.llama_train.tiny_llama import random_llama


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as llama-convert exports it."""
    directory = tmp_path_factory.mktemp("model")
    model = random_llama(vocab_size=330, max_position_embeddings=48, bos_token_id=1, eos_token_id=2)
    with torch.no_grad():  # no bytes are generated: of bytes that are not UTF-8, tokenizers' libraries make other texts
        model.lm_head.weight[3:259] = 0
    model.save_pretrained(directory / "plain")
    train_sentencepiece([TEXT], directory / "plain" / "tokenizer.model", 330)
    return export_huggingface(open_weights(directory / "plain"), directory / "exported")


@pytest.fixture(scope="module")
def theirs(exported: Path) -> tuple:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float64).eval()
    return model, transformers.AutoTokenizer.from_pretrained(exported)


@pytest.fixture(scope="module")
def scorer(exported: Path) -> Scorer:
    model, config, directory = load_model(exported)
    return Scorer(model.eval(), config.context, load_tokenizer(directory), Peers(), batch_size=3)


@pytest.fixture
def task_files(tmp_path: Path) -> Path:
    for name, examples in EXAMPLES.items():
        text = "".join(json.dumps(example) + "\n" for example in examples)
        if name == "schema":
            (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path
