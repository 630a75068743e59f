"""Training a Llama-style tokenizer: its settings, its determinism, what it refuses."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from data_pipeline.tokenize.train import _lines
from llama_foundation.errors import DataError

SENTENCES = [
    f"{subject} {verb} {thing} {number} times, and {other} did not.\n\tThen {thing} {verb} again: été, Straße, 东京!"
    for number, (subject, verb, thing, other) in enumerate(
        (s, v, t, o)
        for s in ("The miller", "A queen", "Nobody", "Our neighbour")
        for v in ("carried", "painted", "remembered")
        for t in ("the old bridge", "seven letters", "a lantern")
        for o in ("the river", "winter")
    )
]


def pieces(model: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


def test_special_tokens_and_bytes_stand_where_llama_has_them(tmp_path: Path) -> None:
    model = train_sentencepiece(SENTENCES, tmp_path / "tokenizer.model", vocabulary_size=400)
    assert model == tmp_path / "tokenizer.model"
    listed = pieces(model)
    assert len(listed) == 400
    assert listed[:3] == ["<unk>", "<s>", "</s>"]
    assert listed[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]


def test_settings_are_those_of_llama_2(tmp_path: Path) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    proto.ParseFromString(train_sentencepiece(SENTENCES, tmp_path / "t.model", 400).read_bytes())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    # Read from the trainer_spec and normalizer_spec of Llama 2's tokenizer.model.
    assert trainer.model_type == trainer.BPE
    assert trainer.character_coverage == pytest.approx(0.99995)
    assert (trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id) == (0, 1, 2, -1)
    assert (trainer.byte_fallback, trainer.split_digits, trainer.allow_whitespace_only_pieces) == (True, True, True)
    assert (trainer.split_by_unicode_script, trainer.split_by_number, trainer.split_by_whitespace) == (True,) * 3
    assert (trainer.max_sentencepiece_length, trainer.max_sentence_length) == (16, 4192)
    assert trainer.unk_surface == " \u2047 "
    assert (normalizer.name, normalizer.precompiled_charsmap) == ("identity", b"")
    assert (normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces) == (True, False)
    assert normalizer.escape_whitespaces


def test_digits_are_split(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(train_sentencepiece(["the year 1984 "] * 50 + SENTENCES, tmp_path / "t.model", 400))
    listed = pieces(tokenizer.path)
    assert "▁year" in listed
    spelled = [listed[i] for i in tokenizer.encode_batch(["1984"])[0]]
    assert [piece for piece in spelled if piece != "▁"] == ["1", "9", "8", "4"]
    assert not any(sum(c.isdigit() for c in piece) > 1 for piece in listed[259:])


def test_the_same_texts_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here = train_sentencepiece(iter(SENTENCES), tmp_path / "a.model", 400).read_bytes()
    source = tmp_path / "texts.txt"
    source.write_text("\f".join(SENTENCES), encoding="utf-8")
    script = (
        "import pathlib, sys; from data_pipeline.tokenize import train_sentencepiece as train;"
        "train(pathlib.Path(sys.argv[1]).read_text(encoding='utf-8').split('\\f'), pathlib.Path(sys.argv[2]), 400)"
    )
    subprocess.run([sys.executable, "-c", script, str(source), str(tmp_path / "b.model")], check=True, timeout=120)
    assert (tmp_path / "b.model").read_bytes() == here


def test_a_vocabulary_too_large_names_the_largest_which_then_works(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocabulary_size=32000 is too large .* at most (\d+) tokens") as refused:
        train_sentencepiece(SENTENCES, tmp_path / "t.model")
    largest = int(str(refused.value).split("at most ")[1].split()[0])
    assert not list(tmp_path.iterdir())
    assert load_tokenizer(train_sentencepiece(SENTENCES, tmp_path / "t.model", largest)).vocabulary_size == largest
    with pytest.raises(DataError, match=f"vocabulary_size={largest + 1} is too large"):
        train_sentencepiece(SENTENCES, tmp_path / "u.model", largest + 1)


def test_a_vocabulary_too_small_for_the_characters_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vocabulary_size=260 is too small") as refused:
        train_sentencepiece(SENTENCES, tmp_path / "t.model", 260)
    smallest = int(str(refused.value).split("alone take ")[1].split()[0])
    characters = set("".join(SENTENCES)) - set("\n ") | {"▁"}
    assert smallest == 259 + len(characters)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", ""]])
def test_no_text_is_refused(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text to train"):
        train_sentencepiece(texts, tmp_path / "t.model", 400)


def test_a_lone_surrogate_is_refused_by_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text 1 .* U\+D83D, at character 2"):
        train_sentencepiece(["fine", "no\ud83d"], tmp_path / "t.model", 400)


def test_an_error_of_the_caller_s_texts_comes_through(tmp_path: Path) -> None:
    def texts():
        yield "some text"
        raise DataError("row 7 is damaged")

    with pytest.raises(DataError, match=r"^row 7 is damaged$"):
        train_sentencepiece(texts(), tmp_path / "t.model", 400)
    assert not list(tmp_path.iterdir())


def test_long_lines_are_counted_and_not_left_out(tmp_path: Path) -> None:
    long_line = "zyzzyva " * 2000
    assert len(long_line.encode()) > 4192
    assert "▁zyzzyva" in pieces(train_sentencepiece([*SENTENCES, long_line], tmp_path / "t.model", 400))
    unhelped = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in SENTENCES for line in text.split("\n")] + [long_line]),
        model_writer=unhelped,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    assert b"zyzzyva" not in unhelped.getvalue()  # what sentencepiece does by itself


@pytest.mark.parametrize("reserved", ["\0", "\u2581", "\u2585"])
def test_a_reserved_character_does_not_cost_its_line(reserved: str, tmp_path: Path) -> None:
    texts = [*SENTENCES, f"quixotry {reserved} quixotry\n" * 50]
    listed = pieces(train_sentencepiece(texts, tmp_path / "t.model", 400))
    assert "▁quixotry" in listed
    assert reserved == "\u2581" or not any(reserved in piece for piece in listed)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from(" ab\n东\U0001f600"), max_size=30)), st.integers(0, 3000))
def test_lines_hold_every_character_but_the_breaks(texts: list[str], stretch: int) -> None:
    texts = [*texts, "x" * stretch + " y" * stretch + "\U0001f600" * stretch]
    lines = list(_lines(texts))
    assert all(0 < len(line.encode()) <= 4192 for line in lines)
    drop = str.maketrans("", "", " \n")
    assert "".join(lines).translate(drop) == "".join(texts).translate(drop)
    for text in texts:
        if len(text) <= 1024:
            assert [line for line in text.split("\n") if line] == list(_lines([text]))
