"""Train a tokenizer of Llama 2's kind: sentencepiece BPE with byte fallback and split digits."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from data_pipeline.tokenize.tokenizer import utf8
from llama_foundation.errors import DataError
from llama_foundation.files import publish

LONGEST_LINE = 1024
"""Characters, at most 4 bytes each: sentencepiece leaves out lines of more than 4192 bytes without a word."""

_LINE_ENDS = re.compile("[\n\0\u2581\u2585]+")
"""Newlines, and what sentencepiece keeps for itself: it would leave out the line that holds U+2585, take U+2581 for
a space and NUL for an unknown character."""


def train_sentencepiece(
    texts: Iterable[str], output: Path, vocabulary_size: int = 32000, character_coverage: float = 0.99995
) -> Path:
    """Train on every text, in one pass, and write the model to the file `output`, which is returned.

    The settings are those inside Llama 2's tokenizer.model (its trainer_spec and normalizer_spec). The same texts in
    the same order give the same bytes. All distinct words stay in memory: hand in a sample of a large corpus.

    Args:
        vocabulary_size: tokens, with the 256 bytes, unk (0), bos (1) and eos (2).
        character_coverage: the share of all characters, by count, that get a token of their own; the others are
            spelled in bytes.

    Raises:
        DataError: there is no text, a text has a lone surrogate, or the text cannot fill `vocabulary_size` tokens or
            has more characters to cover than that.
    """
    failure: list[Exception] = []
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_catching(_lines(texts), failure),
            model_writer=trained,
            model_type="bpe",
            vocab_size=vocabulary_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise (failure[0] if failure else _explained(str(error), vocabulary_size)) from error
    with publish(output) as file:
        file.write(trained.getvalue())
    return output


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of `texts`, long ones cut at a space if there is one (the space is implied in a line's start)."""
    for number, text in enumerate(texts):
        utf8(number, text)
        for line in _LINE_ENDS.split(text):
            start = 0
            while len(line) - start > LONGEST_LINE:
                space = line.rfind(" ", start + 1, start + LONGEST_LINE + 1)
                cut = space if space > 0 else start + LONGEST_LINE
                yield line[start:cut]
                start = cut + 1 if space > 0 else cut
            if start < len(line):
                yield line[start:]


def _catching(lines: Iterator[str], failure: list[Exception]) -> Iterator[str]:
    """Keep what the caller's iterator raised: sentencepiece would hand on its text alone."""
    try:
        yield from lines
    except Exception as error:
        failure.append(error)
        raise


def _explained(message: str, vocabulary_size: int) -> DataError:
    if "!sentences_.empty()" in message:
        return DataError("there is no text to train a tokenizer on: every text is empty")
    largest = re.search(r"set it to a value <= (\d+)", message)
    if largest:
        return DataError(
            f"vocabulary_size={vocabulary_size} is too large for this text, which gives at most {largest.group(1)} "
            f"tokens; use {largest.group(1)} or less, or more text"
        )
    smallest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if smallest:
        return DataError(
            f"vocabulary_size={vocabulary_size} is too small for this text, whose characters and bytes alone take "
            f"{smallest.group(1)} tokens; use more than {smallest.group(1)}, or a lower character_coverage"
        )
    return DataError(f"sentencepiece cannot train a tokenizer with vocabulary_size={vocabulary_size}: {message}")
