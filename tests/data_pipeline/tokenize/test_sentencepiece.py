"""Loading sentencepiece models and going from text to ids and back."""

import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from data_pipeline.tokenize.tokenizer import Tokenizer
from llama_foundation.errors import DataError

CORPUS = Path(__file__).parents[3] / "examples" / "corpus"


def read_some(every: int) -> list[str]:
    """Every so manyth document of the example corpus, in all its languages."""
    texts = []
    for path in sorted(CORPUS.glob("*.jsonl.zst")):
        rows = zstandard.decompress(path.read_bytes()).split(b"\n")[:-1]
        texts += [json.loads(row)["text"] for row in rows[::every]]
    return texts


REAL_TEXT = read_some(every=60)
ENCODABLE = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
TRICKY = st.text(
    alphabet=st.sampled_from(" \u2581\n\r\t\0aé\u2585\ufeff\u200b\U0001f600\U0010fffd<s/>0x1A"), max_size=40
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_sentencepiece(REAL_TEXT, path, 1500, character_coverage=0.998)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def plain(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def train_other(path: Path, **settings: object) -> Path:
    """A model of another kind than Llama's, by sentencepiece alone."""
    trained = io.BytesIO()
    lines = ["the cat sat on the mat", "a dog ran to the hill", "two birds sang in the tree"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, minloglevel=2, **{"vocab_size": 24, **settings}
    )
    path.write_bytes(trained.getvalue())
    return path


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode_batch([text])[0])


def test_a_file_and_its_directory_load_the_same(model: Path) -> None:
    by_file, by_directory = load_tokenizer(model), load_tokenizer(str(model.parent))
    assert by_file.path == by_directory.path == model
    assert by_file.fingerprint == by_directory.fingerprint == hashlib.sha256(model.read_bytes()).hexdigest()
    assert (by_file.vocabulary_size, by_file.bos_id, by_file.eos_id) == (1500, 1, 2)


def test_ids_are_those_of_the_plain_library_on_real_text(tokenizer: Tokenizer, plain) -> None:
    lines = [line for text in REAL_TEXT for line in text.split("\n")]
    for texts in (REAL_TEXT, lines):
        encoded = tokenizer.encode_batch(texts)
        assert [ids.tolist() for ids in encoded] == plain.encode(texts)
        assert all(ids.dtype == np.int32 and ids.ndim == 1 for ids in encoded)


def test_ids_are_those_of_transformers(tokenizer: Tokenizer, model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    other = transformers.LlamaTokenizer.from_pretrained(str(model.parent), legacy=False)
    # At the start of a text transformers adds no space where there is one already, and so loses that one.
    texts = [line for text in REAL_TEXT for line in text.split("\n") if line and not line.startswith(" ")]
    texts += ["two  spaces ", "\n\nlines\n", "\ttab", "Ein schöner Tag 2024 \U0001f600", *REAL_TEXT]
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert ours == [other.encode(text, add_special_tokens=False) for text in texts]


def test_an_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_batch([""])
    assert ids.shape == (0,)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == ""
    assert tokenizer.encode_batch([]) == []


@settings(max_examples=500, deadline=None)
@given(st.one_of(ENCODABLE, TRICKY))
@example("")
@example(" ")
@example("   leading and trailing   ")
@example("\n")
@example("\u2581")
@example(" \u2581 \u2581\u2581a\u2581")
@example("a\0b\0")
@example("\U0010fffd\u2581\U0010fffd")
@example("<0x0A>")
@example("\u2047")
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert round_trip(tokenizer, text) == text


def test_every_code_point_round_trips(tokenizer: Tokenizer) -> None:
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    lines = ["".join(everything[start : start + 64]) for start in range(0, len(everything), 64)]
    texts = [*lines, "\u2581", " \u2581 ", "x\u2581y"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@settings(max_examples=200, deadline=None)
@given(st.one_of(ENCODABLE, TRICKY))
def test_only_u_2581_is_encoded_otherwise_than_by_the_plain_library(tokenizer: Tokenizer, plain, text: str) -> None:
    ids = tokenizer.encode_batch([text])[0].tolist()
    assert (ids == plain.encode(text)) == ("\u2581" not in text)


def test_u_2581_is_spelled_in_bytes(tokenizer: Tokenizer, plain) -> None:
    spelled = [plain.piece_to_id(piece) for piece in ("<0xE2>", "<0x96>", "<0x81>")]
    ids = tokenizer.encode_batch(["the\u2581the"])[0].tolist()
    assert ids[:4] == [plain.piece_to_id("▁the"), *spelled]
    assert "".join(plain.id_to_piece(i) for i in ids[4:]) == "the"


@pytest.mark.parametrize("written", ["</s>", "<s>", "<unk>", "<0x0A>", "<pad>", "a</s>b", "</s></s>"])
def test_special_tokens_in_a_text_are_plain_characters(tokenizer: Tokenizer, written: str) -> None:
    (ids,) = tokenizer.encode_batch([written])
    assert not {0, tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())
    assert tokenizer.decode(ids) == written


def test_bos_and_eos_decode_to_nothing(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_batch([" a text "])
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == " a text "


def test_bytes_that_are_not_utf_8_decode_to_the_replacement_character(tokenizer: Tokenizer, plain) -> None:
    assert tokenizer.decode([plain.piece_to_id("<0xE2>"), plain.piece_to_id("<0x96>")]) == "\ufffd\ufffd"


@pytest.mark.parametrize("text", ["\ud800", "ok\udfff", "\ude00\ud83d"])
def test_a_lone_surrogate_is_refused_by_place(tokenizer: Tokenizer, text: str) -> None:
    place = next(i for i, c in enumerate(text) if 0xD800 <= ord(c) <= 0xDFFF)
    with pytest.raises(DataError, match=rf"text 1 .*U\+{ord(text[place]):04X}, at character {place}"):
        tokenizer.encode_batch(["fine", text])


@pytest.mark.parametrize("token_id", [1500, -1, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(DataError, match=rf"token id {token_id} .* 1500 tokens"):
        tokenizer.decode([5, token_id])


def test_a_missing_file_and_a_directory_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.model: .*No such file"):
        load_tokenizer(tmp_path / "absent.model")
    with pytest.raises(DataError, match=r"no tokenizer\.model and no tokenizer\.json in this directory"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, a text\n" * 50, b"\0" * 5000, b"\xff" * 99])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match="not a sentencepiece model"):
        load_tokenizer(tmp_path)


def fields_end_at(message: bytes) -> list[int]:
    """The end of every top-level field, found by letting protobuf parse longer and longer prefixes."""
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    ends = []
    for end in range(1, len(message)):
        try:
            proto.ParseFromString(message[:end])
        except Exception:
            continue
        ends.append(end)
    return ends


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = train_sentencepiece(REAL_TEXT[:3], tmp_path / "whole.model", 500).read_bytes()
    ends = fields_end_at(whole)
    assert len(ends) > 400
    cut = tmp_path / "cut.model"
    for end in [*ends[::40], *ends[-3:], *range(1, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"cut short|not a sentencepiece model"):
            load_tokenizer(cut)
    cut.write_bytes(whole)
    load_tokenizer(cut)


@pytest.mark.parametrize("missing", ["bos", "eos"])
def test_a_model_without_bos_or_eos_is_refused(missing: str, tmp_path: Path) -> None:
    path = train_other(tmp_path / "t.model", **{f"{missing}_id": -1})
    with pytest.raises(DataError, match=f"no {missing} token"):
        load_tokenizer(path)


def test_a_model_that_normalises_or_has_no_bytes_loads_but_loses_what_it_was_made_to_lose(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(train_other(tmp_path / "t.model"))  # unigram, nmt_nfkc, no byte fallback
    assert round_trip(tokenizer, "the  cat ") == "the cat"
    assert round_trip(tokenizer, "the\u2581cat 東") == "the cat  \u2047 "


def test_a_model_with_the_space_behind_the_word_loads(tmp_path: Path) -> None:
    path = train_other(
        tmp_path / "t.model",
        model_type="bpe",
        byte_fallback=True,
        vocab_size=320,
        treat_whitespace_as_suffix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    tokenizer = load_tokenizer(path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.encode_batch(["the cat\u2581sat"])[0].tolist() == plain.encode("the cat\u2581sat")


def test_the_fingerprint_is_the_sha_256_of_the_file(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.model"
    shutil.copy(model, copy)
    assert load_tokenizer(copy).fingerprint == load_tokenizer(model).fingerprint
    other = train_sentencepiece(REAL_TEXT, tmp_path / "other.model", 1501, character_coverage=0.998)
    assert load_tokenizer(other).fingerprint != load_tokenizer(model).fingerprint
    sha256 = subprocess.run(["sha256sum", str(copy)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert load_tokenizer(copy).fingerprint == sha256
