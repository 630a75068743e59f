import base64
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer

from llama_foundation.errors import DataError
from llama_train.checkpoint.huggingface_tokenizer import (
    SpecialTokens,
    build_tokenizer,
    end_of_text_ids,
    special_tokens,
    tokenizer_settings,
)

TEXT = """
The quick brown fox jumps over the lazy dog; then it rests, and the dog jumps over the fox.
Der schnelle braune Fuchs springt über den faulen Hund und ruht sich danach aus: 1, 2, 3, 1984.
Le renard brun saute par-dessus le chien paresseux, puis il se repose à l'ombre, l'été comme l'hiver.
def jump(fox, over):
    return [step for step in fox if step != over]   # spaces   on   purpose
"""


def train(directory, **settings):
    (directory / "text.txt").write_text(TEXT * 4)
    sentencepiece.SentencePieceTrainer.train(
        **{
            "input": str(directory / "text.txt"),
            "model_prefix": str(directory / "tokenizer"),
            "vocab_size": 420,
            "model_type": "bpe",
            "byte_fallback": True,
            "split_digits": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
        }
        | settings
    )
    return directory / "tokenizer.model"


VARIANTS = {
    "llama": {},
    "no prefix": {"add_dummy_prefix": False},
    "whitespace": {"allow_whitespace_only_pieces": True},
    "symbols": {"user_defined_symbols": ["<fox>", "<dog>"], "control_symbols": ["<pad>"]},
    "normalising": {"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
    "no bos": {"bos_id": -1},
}


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    model_file = train(directory, **VARIANTS[request.param])
    build_tokenizer(model_file).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings(model_file, 64)))
    processor = sentencepiece.SentencePieceProcessor(str(model_file))
    return request.param, processor, AutoTokenizer.from_pretrained(directory)


WORDS = st.sampled_from(
    [*TEXT.split(" "), " ", "  ", "\n", "\t", "1984", "über", "猫", "🦙", "\u00a0", "e\u0301", "<fox>"]
)


@settings(max_examples=150, deadline=None)
@given(text=st.lists(WORDS, max_size=12).map("".join) | st.text(max_size=20))
def test_autotokenizer_gives_sentencepiece_ids(exported, text):
    variant, processor, theirs = exported
    # written-out special tokens become special in transformers, as everywhere there; NUL ends a text in sentencepiece
    for special in ("<s>", "</s>", "<unk>", "<pad>", "\0"):
        text = text.replace(special, "")
    text = text.encode("utf-8", "ignore").decode()
    if variant in ("symbols", "normalising"):
        text = " ".join(text.replace("<fox>", "").replace("\u0301", "").split())
    assert theirs.encode(text, add_special_tokens=False) == processor.encode(text)


def test_autotokenizer_puts_bos_in_front_and_decodes(exported):
    variant, processor, theirs = exported
    bos = [] if variant == "no bos" else [processor.bos_id()]
    ids = theirs.encode("the fox, 12 dogs 猫")
    assert ids == [*bos, *processor.encode("the fox, 12 dogs 猫")]
    assert theirs.decode(ids, skip_special_tokens=True) == "the fox, 12 dogs 猫"
    assert theirs.eos_token_id == processor.eos_id()
    assert len(theirs) == processor.vocab_size()


def test_special_tokens_come_from_the_model_or_from_tokenizer_json(tmp_path):
    model_file = train(tmp_path, bos_id=2, eos_id=1)
    found = special_tokens({"tokenizer.model": model_file})
    assert (found.bos, found.eos) == (2, 1)
    build_tokenizer(model_file).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    files = {name: tmp_path / name for name in ("tokenizer.json", "tokenizer_config.json")}
    assert special_tokens(files) == found
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: the tokenizer cannot be read"):
        special_tokens(files)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a BPE model"):
        build_tokenizer(train(tmp_path, model_type="unigram", vocab_size=350))
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 50)
    with pytest.raises(DataError, match=r"tokenizer\.model: not a sentencepiece model"):
        build_tokenizer(tmp_path / "tokenizer.model")


def test_a_model_whose_ids_cannot_be_reproduced_is_refused(tmp_path):
    with pytest.raises(DataError, match="would encode"):
        build_tokenizer(train(tmp_path, treat_whitespace_as_suffix=True))


def test_every_end_of_text_of_llama_3_is_found_by_name(tmp_path):
    vocabulary = {name: number for number, name in enumerate("abc")}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>", "<|eot_id|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    assert end_of_text_ids(files) == [4, 6]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|reserved|>"}))
    assert end_of_text_ids(files | {"tokenizer_config.json": tmp_path / "tokenizer_config.json"}) == [4, 5, 6]


def test_ranks_of_tiktoken_have_llama_3s_special_tokens_after_them(tmp_path):
    # 300 ranks: Llama 3 has 128,000, and <|begin_of_text|> 128000, <|end_of_text|> 128001, <|eot_id|> 128009
    lines = [base64.b64encode(number.to_bytes(2, "big")) + b" %d" % number for number in range(300)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    files = {"tokenizer.model": tmp_path / "tokenizer.model"}
    assert special_tokens(files) == SpecialTokens(300, 301)
    assert end_of_text_ids(files) == [301, 308, 309]


def test_a_tokenizer_without_those_names_ends_with_its_eos(tmp_path):
    assert end_of_text_ids({"tokenizer.model": train(tmp_path)}) == [2]
    assert end_of_text_ids({}) == []
