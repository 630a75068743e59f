"""Llama 3's kind of tokenizer: training it, loading its ranks, and ids equal to tiktoken's and tokenizers'."""

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from data_pipeline.tokenize import load_tokenizer, train_byte_level
from data_pipeline.tokenize.tiktoken import LONGEST_WHITE_SPACE, SPECIAL_TOKENS, SPLIT_PATTERN
from data_pipeline.tokenize.train_byte_level import byte_level_pieces
from llama_foundation.errors import DataError

CORPUS = Path(__file__).parents[3] / "examples" / "corpus"
TEXTS = [
    json.loads(row)["text"]
    for path in sorted(CORPUS.glob("*.jsonl.zst"))
    for row in zstandard.decompress(path.read_bytes()).split(b"\n")[:-1:60]
]
TRICKY = st.text(alphabet=st.sampled_from(" \n\r\t\u00a0\u3000a\u00e9'sT1٣.,東\U0001f600<|>\x1c"), max_size=40)
RANKS = 1000


@pytest.fixture(scope="module")
def ranks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_byte_level(TEXTS, tmp_path_factory.mktemp("ranks") / "tokenizer.model", RANKS + 256)


@pytest.fixture(scope="module")
def tokenizer(ranks_file: Path):
    return load_tokenizer(ranks_file)


@pytest.fixture(scope="module")
def plain(ranks_file: Path) -> tiktoken.Encoding:
    special = {name: RANKS + place for place, name in enumerate(SPECIAL_TOKENS)}
    ranks = load_tiktoken_bpe(str(ranks_file))
    return tiktoken.Encoding("plain", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def test_special_tokens_have_metas_names_and_follow_the_ranks(tokenizer) -> None:
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == 256
    named = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"]
    named += ["finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    named += ["image", "reserved_special_token_2", "reserved_special_token_3"]
    assert SPECIAL_TOKENS[:14] == tuple(f"<|{name}|>" for name in named)
    assert SPECIAL_TOKENS[255] == "<|reserved_special_token_245|>"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocabulary_size) == (RANKS, RANKS + 1, RANKS + 256)
    assert tokenizer.end_of_text_ids == (RANKS + 1, RANKS + 8, RANKS + 9)


@settings(max_examples=300, deadline=None)
@given(st.one_of(TRICKY, st.text(alphabet=st.characters(codec="utf-8"), max_size=60)))
@example("<|eot_id|> and <|begin_of_text|>")
def test_ids_are_tiktokens_and_every_text_comes_back(tokenizer, plain, text: str) -> None:
    (ids,) = tokenizer.encode_batch([text])
    assert ids.dtype == np.int32
    assert ids.tolist() == plain.encode_ordinary(text)
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text
    assert not ids.size or ids.max() < RANKS
    (special,) = tokenizer.encode_batch([text], special_tokens=True)
    assert special.tolist() == plain.encode(text, allowed_special="all")


def test_real_text_has_the_ids_of_tiktoken_and_of_the_trained_tokenizers_model(tokenizer, plain) -> None:
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = byte_level_pieces()
    trained.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=RANKS,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    ours = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    assert ours == [plain.encode_ordinary(text) for text in TEXTS]
    assert ours == [trained.encode(text).ids for text in TEXTS]


def test_special_tokens_written_out_are_text_unless_asked_for(tokenizer) -> None:
    text = "a<|eot_id|>b<|end_of_text|>"
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    (ids,) = tokenizer.encode_batch([text], special_tokens=True)
    a, b = (tokenizer.encode_batch([letter])[0].tolist() for letter in "ab")
    assert ids.tolist() == [*a, RANKS + 9, *b, RANKS + 1]


@pytest.mark.parametrize("before", ["", "a", "1", ".", "a.\n", "\n"])
@pytest.mark.parametrize("run", [" ", "\n", "\n ", " \n", "\t", "\r\n", "\u3000"])
@pytest.mark.parametrize("after", ["", "a", ".", "1 "])
def test_long_white_space_is_encoded_as_tiktoken_does_where_it_can(tokenizer, plain, before, run, after) -> None:
    repeated = run * (LONGEST_WHITE_SPACE // len(run) + 1)
    for text in (before + repeated + after, before + repeated + " " + after + repeated + after):
        assert tokenizer.encode_batch([text])[0].tolist() == plain.encode_ordinary(text)


def test_white_space_on_which_tiktoken_runs_out_of_stack_comes_back(tokenizer) -> None:
    text = "x" + " " * 1_500_000 + "y"
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


def lines(ranks_file: Path) -> list[bytes]:
    return ranks_file.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "last line has no end"),
        (lambda lines: [*lines[:9], *lines[10:]], "no token has rank 9"),
        (lambda lines: [*lines[:9], b"\n", *lines[10:]], "line 10 is b''"),
        (lambda lines: [*lines[:500], b"IQ= 500\n", *lines[501:]], "line 501 is b'IQ= 500'"),
        (lambda lines: [*lines[:500], b"IQ== 500\n", *lines[501:]], "line 501: token b'!' is there a second time"),
        (lambda lines: [*lines[:500], lines[500].split()[0] + b" 7\n", *lines[501:]], "no token has rank 500"),
        (lambda lines: [*lines, b"aGVsbG8gaGVsbG8= 99999999999\n"], "not a token in base64 and its rank"),
        (lambda lines: [b"aGVsbG8gaGVsbG8= 0\n", *lines[1:]], "byte 0x21 has no token"),
    ],
)
def test_damaged_ranks_are_refused(ranks_file: Path, tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(damage(lines(ranks_file))))
    with pytest.raises(DataError, match=message) as refused:
        load_tokenizer(path)
    assert str(path) in str(refused.value)


def test_ranks_cut_within_a_line_are_refused(ranks_file: Path, tmp_path: Path) -> None:
    whole = ranks_file.read_bytes()
    for end in random.Random(0).sample(range(10, len(whole)), 40):
        if whole[end - 1 : end] != b"\n":
            (tmp_path / "cut").write_bytes(whole[:end])
            with pytest.raises(DataError, match=r"cut short"):
                load_tokenizer(tmp_path / "cut")


def test_the_same_texts_in_another_order_and_process_give_the_same_bytes(ranks_file: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text(json.dumps(TEXTS[::-1]))
    script = (
        "import json, pathlib, sys; from data_pipeline.tokenize import train_byte_level as train;"
        f"train(json.load(open(sys.argv[1])), pathlib.Path(sys.argv[2]), {RANKS + 256})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "2"}
    command = [sys.executable, "-c", script, str(tmp_path / "texts"), str(tmp_path / "b")]
    subprocess.run(command, check=True, timeout=120, env=environment, cwd=Path(__file__).parents[3])
    assert (tmp_path / "b").read_bytes() == ranks_file.read_bytes()


def test_tokens_stay_within_the_pieces_of_the_split_pattern(ranks_file: Path, plain) -> None:
    tokens = [base64.b64decode(line.split()[0]) for line in lines(ranks_file)]
    assert b" the" in tokens
    assert not any(len(token) > 3 and token.isdigit() for token in tokens)
    assert not any(b" " in token.rstrip(b" ")[1:] for token in tokens)


def test_a_vocabulary_too_large_names_the_largest_which_then_works(tmp_path: Path) -> None:
    texts = ["the old bridge and the old river"] * 3
    with pytest.raises(DataError, match=r"vocabulary_size=5000 is too large .* at most (\d+) tokens") as refused:
        train_byte_level(texts, tmp_path / "t", 5000)
    largest = int(str(refused.value).split("at most ")[1].split()[0])
    assert load_tokenizer(train_byte_level(texts, tmp_path / "t", largest)).vocabulary_size == largest
    with pytest.raises(DataError, match=r"at least 512"):
        train_byte_level(texts, tmp_path / "t", 511)
    with pytest.raises(DataError, match=r"text 1 has a lone surrogate"):
        train_byte_level(["fine", "no\ud83d"], tmp_path / "t", 600)


def test_ids_outside_and_lone_surrogates_are_refused(tokenizer) -> None:
    with pytest.raises(DataError, match=rf"token id {RANKS + 256} "):
        tokenizer.decode([RANKS + 256])
    with pytest.raises(DataError, match=r"text 1 .*U\+D800"):
        tokenizer.encode_batch(["fine", "\ud800"])
