"""What the rest of the package knows of a tokenizer."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llama_foundation.errors import DataError

LARGEST_FILE = 256 * 1024 * 1024
"""Bytes; the largest published tokenizer files have some 20 MB."""


class Tokenizer(Protocol):
    """Text to token ids and back, read from one file.

    `path` is that file, and `file_name` what a copy of it is called: shards and checkpoints carry one. `fingerprint`
    is the SHA-256 of its bytes, as hexadecimal digits: two tokenizers with equal fingerprints give equal ids. Ids are
    below `vocabulary_size`. `end_of_text_ids` are all ids after which a text ends, `eos_id` first.
    """

    path: Path
    file_name: str
    fingerprint: str
    vocabulary_size: int
    bos_id: int
    eos_id: int
    end_of_text_ids: tuple[int, ...]

    def encode_batch(self, texts: list[str], special_tokens: bool = False) -> list[np.ndarray]:
        """Return the ids of every text, int32 of shape [tokens], without bos and eos.

        Args:
            special_tokens: whether special tokens written out in a text ("</s>") become the special id, with a text
                of its own on both sides. They are plain characters otherwise, as they should be in training text.

        Raises:
            DataError: a text holds a lone surrogate, which is not a character and has no UTF-8 form.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special tokens have none, bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: an id is not in the vocabulary.
        """


def utf8(number: int, text: str) -> bytes:
    """Return the UTF-8 bytes of `text`.

    Raises:
        DataError: it holds a lone surrogate. `number` says which text it is.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {number} has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; it has "
            f"no UTF-8 form: replace it, for example with U+FFFD"
        ) from error


def read_tokenizer_file(path: Path) -> bytes:
    """Return the contents of a tokenizer file.

    Raises:
        DataError: it cannot be read, or is larger than any tokenizer.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise DataError(f"{path}: larger than {LARGEST_FILE:,} bytes, so it is no tokenizer file")
    return content


def encode_around(
    special_ids: Mapping[str, int], text: str, encode: Callable[[str], Sequence[int] | np.ndarray]
) -> np.ndarray:
    """Return the ids of `text`, int32: those of `special_ids` where one is written out, and `encode`'s in between.

    Where two special tokens start at the same place, the longer one is meant.
    """
    if not special_ids:
        return np.asarray(encode(text), dtype=np.int32)
    names = sorted(special_ids, key=len, reverse=True)
    ids: list[Sequence[int] | np.ndarray] = []
    for number, part in enumerate(re.split(f"({'|'.join(map(re.escape, names))})", text)):
        ids.append([special_ids[part]] if number % 2 else encode(part))
    return np.concatenate([np.asarray(each, dtype=np.int32) for each in ids])


def check_ids(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return `ids` as plain integers.

    Raises:
        DataError: one is not in the vocabulary.
    """
    plain = np.asarray(ids, dtype=np.int64).tolist()
    for token_id in plain:
        if not 0 <= token_id < tokenizer.vocabulary_size:
            raise DataError(
                f"token id {token_id} is not in {tokenizer.path}, which has {tokenizer.vocabulary_size} tokens"
            )
    return plain
