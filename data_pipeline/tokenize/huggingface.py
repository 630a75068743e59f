"""Hugging Face's tokenizer.json behind the tokenizer interface."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from data_pipeline.tokenize.tiktoken import END_OF_TEXT
from data_pipeline.tokenize.tokenizer import check_ids, utf8
from llama_foundation.errors import DataError

_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>")
_EOS = ("<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>")


class HuggingFaceTokenizer:
    """A `Tokenizer`; the ids are those of the tokenizers library without truncation, padding and template.

    The file does not say which of its special tokens begin and end a text: Llama 3's, Llama 2's, Gemma's or GPT-2's
    names are looked for, in this order.
    """

    file_name = "tokenizer.json"

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exceptions
            raise DataError(f"{path}: not a tokenizer.json, or a damaged one: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        special = {
            token.content: number
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        vocabulary = self._tokenizer.get_vocab()
        if not vocabulary:
            raise DataError(f"{path}: the vocabulary is empty")
        self.vocabulary_size = 1 + max(vocabulary.values())
        self.bos_id, self.eos_id = self._named("bos", _BOS, special), self._named("eos", _EOS, special)
        others = (special[name] for name in END_OF_TEXT if name in special)
        self.end_of_text_ids = tuple(dict.fromkeys((self.eos_id, *others)))

    def encode_batch(self, texts: list[str], special_tokens: bool = False) -> list[np.ndarray]:
        self._tokenizer.encode_special_tokens = not special_tokens
        encoded = []
        for number, text in enumerate(texts):
            utf8(number, text)
            # one text at a time: a batch would start threads beside the pipeline's processes
            ids = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            encoded.append(np.array(ids, dtype=np.int32))
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(check_ids(ids, self), skip_special_tokens=True)

    def _named(self, role: str, names: tuple[str, ...], special: dict[str, int]) -> int:
        for name in names:
            if name in special:
                return special[name]
        raise DataError(
            f"{self.path}: no {role} token, and every document is stored as bos + tokens + eos; one of "
            f"{', '.join(names)} must be a special token under added_tokens"
        )
