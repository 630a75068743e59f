"""Train a tokenizer of Llama 3's kind: byte-level BPE within the pieces of its split pattern."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from data_pipeline.tokenize.tiktoken import SPECIAL_TOKENS, SPLIT_PATTERN
from data_pipeline.tokenize.tokenizer import utf8
from llama_foundation.errors import DataError
from llama_foundation.files import publish

FEWEST_OCCURRENCES = 2
"""Of a pair that becomes a token; below that, merges are in no particular order."""


def train_byte_level(texts: Iterable[str], output: Path, vocabulary_size: int = 128_256) -> Path:
    """Train on every text and write the ranks, in tiktoken's format, to the file `output`, which is returned.

    The same texts give the same bytes, in any order: pairs that occur equally often are merged in the order of their
    ids. All distinct words stay in memory: hand in a sample of a large corpus.

    Args:
        vocabulary_size: tokens, with the 256 bytes and the 256 special tokens.

    Raises:
        DataError: a text has a lone surrogate, or the text cannot fill `vocabulary_size` tokens.
    """
    ranks = vocabulary_size - len(SPECIAL_TOKENS)
    if ranks < 256:
        raise DataError(f"vocabulary_size={vocabulary_size} must be at least 512: 256 bytes and 256 special tokens")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level_pieces()
    trainer = trainers.BpeTrainer(
        vocab_size=ranks, min_frequency=FEWEST_OCCURRENCES, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(_checked(texts), trainer)
    found = tokenizer.get_vocab()
    if len(found) < ranks:
        raise DataError(
            f"vocabulary_size={vocabulary_size} is too large for this text, which gives at most "
            f"{len(found) + len(SPECIAL_TOKENS)} tokens; use that or less, or more text"
        )
    byte_of = byte_characters()
    with publish(output) as file:
        for token, rank in sorted(found.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(bytes(byte_of[character] for character in token)) + b" %d\n" % rank)
    return output


def byte_level_pieces() -> pre_tokenizers.PreTokenizer:
    """Return what cuts a text as Llama 3 does and spells it in the characters that stand for bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_characters() -> dict[str, int]:
    """Return the character that stands for each byte in a byte-level tokenizer -> that byte.

    GPT-2's rule (openai/gpt-2, src/encoder.py): printable Latin-1 stands for itself, the others for U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        utf8(number, text)
        yield text
