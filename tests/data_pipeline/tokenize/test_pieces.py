"""Pieces that are encoded once give the ids of the whole text."""

import io
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenize import load_tokenizer, pieces
from data_pipeline.tokenize.pieces import piece_pattern

WORDS = ["the", "bridge", "to", "toto", "bobo", "()", "();", "'s", "été", "東京", "京東", "1984", "\u00a0\u00a0"]


def train(path: Path, seed: int, **other: object) -> Path:
    """A model of random words, split at nothing but spaces: merges join any neighbours."""
    choose = random.Random(seed)
    lines = ["".join(choose.choices([*WORDS, " ", "  "], k=30)) for _ in range(60)]
    trained = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 256 + 3 + 90,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_by_unicode_script": seed % 2 == 0,
        "split_by_number": seed % 2 == 0,
        "add_dummy_prefix": seed % 3 != 0,
        "character_coverage": 0.99,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, **{**settings, **other}
    )
    path.write_bytes(trained.getvalue())
    return path


@pytest.fixture(scope="module", params=range(6))
def both(request, tmp_path_factory: pytest.TempPathFactory):
    path = train(tmp_path_factory.mktemp("pieces") / "t.model", request.param)
    tokenizer = load_tokenizer(path)
    assert tokenizer._pieces is not None
    return tokenizer, sentencepiece.SentencePieceProcessor(model_file=str(path))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "\t", "x", "\0", "é", "b", "o", "(", "東"]), max_size=25))
def test_ids_are_those_of_the_whole_text(both, words: list[str]) -> None:
    tokenizer, plain = both
    text = "".join(words)
    assert tokenizer.encode_batch([text])[0].tolist() == plain.encode(text)


def test_a_text_is_cut_without_a_gap_into_short_pieces(both) -> None:
    tokenizer, _ = both
    text = " ".join(WORDS) + " \u2581\n  x  "
    found = piece_pattern(tokenizer.path.read_bytes()).findall(text)
    assert "".join(found) == text
    assert len(found) > len(WORDS)


def test_a_full_cache_starts_anew_and_long_pieces_stay_out(both, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, plain = both
    monkeypatch.setattr(pieces, "MOST_PIECES", 7)
    text = " ".join([*WORDS, "o" * 100] * 3)
    tokenizer._pieces.clear()
    for _ in range(2):
        assert tokenizer.encode_batch([text])[0].tolist() == plain.encode(text)
        assert 0 < len(tokenizer._pieces) <= 7
        assert max(map(len, tokenizer._pieces)) <= pieces.LONGEST_PIECE


@pytest.mark.parametrize(
    "other",
    [
        {"user_defined_symbols": ["o b"]},
        {"model_type": "unigram"},
        {"normalization_rule_name": "nfkc"},
        {"remove_extra_whitespaces": True},
        {"treat_whitespace_as_suffix": True},
        {"split_by_whitespace": False, "split_by_unicode_script": False, "vocab_size": 800},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_model_that_may_join_across_pieces_is_encoded_whole(other, tmp_path: Path) -> None:
    path = train(tmp_path / "t.model", 2, **other)
    assert piece_pattern(path.read_bytes()) is None
    text = "the bridge to  toto bobo();"
    plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert load_tokenizer(path).encode_batch([text])[0].tolist() == plain.encode(text)
