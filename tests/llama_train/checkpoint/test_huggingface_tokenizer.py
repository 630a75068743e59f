import json

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipeline.tokenize import load_tokenizer, train_byte_level
from llama_foundation.errors import DataError
from llama_train.checkpoint.huggingface_tokenizer import (
    build_tokenizer,
    json_settings,
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    model_file = train_byte_level([TEXT * 4], directory / "tokenizer.model", 256 + 420)
    build_tokenizer(model_file).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings(model_file, 64)))
    return load_tokenizer(model_file), AutoTokenizer.from_pretrained(directory)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(WORDS, max_size=12).map("".join) | st.text(st.characters(codec="utf-8"), max_size=30))
def test_autotokenizer_gives_the_ids_of_tiktoken_ranks(ranks, text):
    assume("<|" not in text)  # there transformers makes special tokens of text, and we text of special tokens
    ours, theirs = ranks
    ids = ours.encode_batch([text])[0].tolist()
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.encode(text) == [ours.bos_id, *ids]
    assert theirs.decode(ids) == text


def test_autotokenizer_knows_the_special_tokens_of_tiktoken_ranks(ranks):
    ours, theirs = ranks
    text = "<|start_header_id|>user<|end_header_id|>the fox<|eot_id|><|reserved_special_token_245|>"
    ids = ours.encode_batch([text], special_tokens=True)[0].tolist()
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (420, 421, 676)


def test_every_end_of_text_is_listed_for_generation(ranks, tmp_path):
    ours, _ = ranks
    found = special_tokens({"tokenizer.model": ours.path})
    assert (found.bos, found.eos, found.generation_eos()) == (420, 421, [421, 428, 429])
    json_file = ours.path.with_name("tokenizer.json")
    assert special_tokens({"tokenizer.json": json_file}) == found
    config_file = json_file.with_name("tokenizer_config.json")
    assert special_tokens({"tokenizer.json": json_file, "tokenizer_config.json": config_file}) == found
    assert json_settings(json_file, 64)["eos_token"] == "<|end_of_text|>"
    assert special_tokens({"tokenizer.model": train(tmp_path)}).generation_eos() == 2
