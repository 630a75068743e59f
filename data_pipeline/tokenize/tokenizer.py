"""What the rest of the package knows of a tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llama_foundation.errors import DataError


class Tokenizer(Protocol):
    """Text to token ids and back, read from one file.

    `path` is that file: shards and checkpoints carry a copy of it. `fingerprint` is the SHA-256 of its bytes, as
    hexadecimal digits: two tokenizers with equal fingerprints give equal ids. Ids are below `vocabulary_size`.
    """

    path: Path
    fingerprint: str
    vocabulary_size: int
    bos_id: int
    eos_id: int

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of every text, int32 of shape [tokens], without bos and eos.

        Special tokens written out in a text ("</s>") are plain characters and never become the special id.

        Raises:
            DataError: a text holds a lone surrogate, which is not a character and has no UTF-8 form.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bos and eos have none, bytes that are not UTF-8 become U+FFFD.

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
