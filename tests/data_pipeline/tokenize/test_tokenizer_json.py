"""Loading tokenizer.json, and telling the kinds of tokenizer files apart."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken

from data_pipeline.tokenize import load_tokenizer, train_byte_level, train_sentencepiece
from data_pipeline.tokenize.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenize.sentencepiece import SentencePieceTokenizer
from data_pipeline.tokenize.tiktoken import TiktokenTokenizer
from llama_foundation.errors import DataError

TEXTS = ["the old bridge over the old river, 1984!", "été, Straße, 东京\n\n  and <s>so</s> on"] * 4


def made(special=("<s>", "</s>")) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return tokenizer


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    tokenizer = made()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_ids_are_those_of_the_library_without_truncation_and_padding(json_file: Path) -> None:
    tokenizer, plain = load_tokenizer(json_file), made()
    plain.encode_special_tokens = True
    ours = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    assert ours == [plain.encode(text).ids for text in TEXTS]
    assert [tokenizer.decode(ids) for ids in ours] == TEXTS
    assert not {tokenizer.bos_id, tokenizer.eos_id} & {token_id for ids in ours for token_id in ids}
    plain.encode_special_tokens = False
    ours = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS, special_tokens=True)]
    assert ours == [plain.encode(text).ids for text in TEXTS]
    assert {tokenizer.bos_id, tokenizer.eos_id} < set(ours[1])
    assert tokenizer.encode_batch(TEXTS)[1].tolist() != ours[1]  # the choice does not stick


@pytest.mark.parametrize(
    ("special", "roles"),
    [
        (("<s>", "</s>"), ("<s>", "</s>", ["</s>"])),
        (("<|endoftext|>",), ("<|endoftext|>", "<|endoftext|>", ["<|endoftext|>"])),
        (
            ("<|eot_id|>", "<|begin_of_text|>", "<|eom_id|>", "<|end_of_text|>"),
            ("<|begin_of_text|>", "<|end_of_text|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]),
        ),
    ],
)
def test_bos_eos_and_all_ends_are_found_by_name(special, roles, tmp_path: Path) -> None:
    plain = made(special)
    plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    bos, eos, ends = roles
    assert (tokenizer.bos_id, tokenizer.eos_id) == (plain.token_to_id(bos), plain.token_to_id(eos))
    assert tokenizer.end_of_text_ids == tuple(map(plain.token_to_id, ends))
    assert tokenizer.vocabulary_size == plain.get_vocab_size()


def test_a_tokenizer_without_bos_or_eos_is_refused(tmp_path: Path) -> None:
    made(("[CLS]", "</s>")).save(str(tmp_path / "t"))
    with pytest.raises(DataError, match=r"no bos token.*<\|begin_of_text\|>, <s>"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"model": {}}', b'{"\xff": 1}', b"{" * 100_000])
def test_damaged_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json, or a damaged one"):
        load_tokenizer(tmp_path)


def test_json_cut_anywhere_is_refused(json_file: Path) -> None:
    whole = json_file.read_bytes()
    for end in range(1, len(whole) - 2, 499):
        json_file.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"not a tokenizer\.json, or a damaged one"):
            load_tokenizer(json_file)


def test_the_kind_is_told_by_content_and_not_by_name(json_file: Path, tmp_path: Path) -> None:
    byte_level = train_byte_level(TEXTS, tmp_path / "ranks", 530)
    pieces = train_sentencepiece(TEXTS, tmp_path / "pieces", 310)
    kinds = {json_file: HuggingFaceTokenizer, byte_level: TiktokenTokenizer, pieces: SentencePieceTokenizer}
    for path, kind in kinds.items():
        for name in ("tokenizer.model", "tokenizer.json", "anything"):
            (tmp_path / "named").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "named" / name)
            assert type(load_tokenizer(tmp_path / "named" / name)) is kind


def test_a_file_larger_than_any_tokenizer_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "t").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"larger than 268,435,456 bytes"):
        load_tokenizer(tmp_path / "t")


def test_sentencepiece_control_tokens_become_special_only_when_asked_for(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(train_sentencepiece(TEXTS, tmp_path / "t", 310))
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t"))
    text = "<s>old bridge</s>the river"
    assert tokenizer.encode_batch([text])[0].tolist() == plain.encode(text)
    expected = [1, *plain.encode("old bridge"), 2, *plain.encode("the river")]
    assert tokenizer.encode_batch([text], special_tokens=True)[0].tolist() == expected


def test_json_of_a_bpe_with_bytes_and_prefix_decodes_special_tokens_to_nothing(json_file: Path) -> None:
    tokenizer = load_tokenizer(json_file)
    (ids,) = tokenizer.encode_batch([TEXTS[0]])
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == TEXTS[0]
    assert json.loads(json_file.read_text())["truncation"]["max_length"] == 3
