"""Llama 3's kind of tokenizer: a file of tokens and ranks in tiktoken's format, and Meta's 256 special tokens."""

import base64
import binascii
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiktoken

from data_pipeline.tokenize.tokenizer import check_ids, encode_around, utf8
from llama_foundation.errors import DataError

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""What is never merged across (meta-llama/llama-models, models/llama3/tokenizer.py)."""

_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|image|>",
}
_RESERVED = iter(range(256))
SPECIAL_TOKENS = tuple(_NAMED.get(place) or f"<|reserved_special_token_{next(_RESERVED)}|>" for place in range(256))
"""In the order of their ids, which start after the ranks: those of Llama 3.1 and later (as above). Llama 3 has the
same with other names for the ones that it did not use yet."""

END_OF_TEXT = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
"""Of a document, a message and a turn: Meta's stop tokens (as above)."""

FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,8})\r?")

_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space
LONGEST_WHITE_SPACE = 100_000
_LONG_WHITE_SPACE = re.compile(f"[{_WHITE_SPACE}]{{{LONGEST_WHITE_SPACE},}}")


class TiktokenTokenizer:
    """A `Tokenizer`; the ids are tiktoken's own, and every text without lone surrogates comes back unchanged."""

    file_name = "tokenizer.model"

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._ranks = read_ranks(content, path)
        special = {name: len(self._ranks) + place for place, name in enumerate(SPECIAL_TOKENS)}
        self.vocabulary_size = len(self._ranks) + len(special)
        self.bos_id, self.eos_id = special["<|begin_of_text|>"], special["<|end_of_text|>"]
        self.end_of_text_ids = tuple(special[name] for name in END_OF_TEXT)
        self._special_ids = special
        self._encoding = _encoding(SPLIT_PATTERN, self._ranks)
        self._unsplit: tiktoken.Encoding | None = None

    def encode_batch(self, texts: list[str], special_tokens: bool = False) -> list[np.ndarray]:
        special = self._special_ids if special_tokens else {}
        for number, text in enumerate(texts):
            utf8(number, text)
        return [encode_around(special, text, self._encode) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        plain = check_ids(ids, self)
        return self._encoding.decode([token_id for token_id in plain if token_id < len(self._ranks)])

    def _encode(self, text: str) -> np.ndarray:
        if len(text) < LONGEST_WHITE_SPACE or not _LONG_WHITE_SPACE.search(text):
            return self._encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)
        return self._encode_around_white_space(text)

    def _encode_around_white_space(self, text: str) -> np.ndarray:
        r"""Encode a text with a long run of white space, on which tiktoken would run out of stack in `\s+(?!\S)`.

        The run is cut where the split pattern would: after the newlines that a punctuation mark takes with it, after
        the last newline, and before the last character if the text goes on.
        """
        ids, start = [], 0
        for run in _LONG_WHITE_SPACE.finditer(text):
            first, end = run.span()
            if first < start:  # the last character of the run before, kept for what follows it
                first = start
            before = text[first - 1 : first]
            if before and unicodedata.category(before)[0] not in "LN":
                first += len(text[first:end]) - len(text[first:end].lstrip("\r\n"))
            newline = max(text.rfind("\n", first, end), text.rfind("\r", first, end)) + 1 or first
            last = end if end == len(text) else max(newline, end - 1)
            ids.append(self._encoding.encode_to_numpy(text[start:first], disallowed_special=()))
            ids += [self._encode_unsplit(text[first:newline]), self._encode_unsplit(text[newline:last])]
            start = last
        ids.append(self._encoding.encode_to_numpy(text[start:], disallowed_special=()))
        return np.concatenate(ids).astype(np.int32)

    def _encode_unsplit(self, text: str) -> np.ndarray:
        self._unsplit = self._unsplit or _encoding(r"[\s\S]+", self._ranks)
        return self._unsplit.encode_to_numpy(text, disallowed_special=())


def read_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Return token -> rank from lines of base64 and decimal digits; `path` names the file in errors.

    A file cut at the end of a line holds a smaller vocabulary, which nothing in this format tells from a whole one.

    Raises:
        DataError: a line is something else, a token or rank occurs twice or is missing, or a byte has no token.
    """
    lines = content.split(b"\n")
    if lines.pop():
        raise DataError(f"{path}: the file is cut short: its last line has no end")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if not token:
            raise DataError(f"{path}: line {number} is {line[:60]!r}, not a token in base64 and its rank")
        if token in ranks:
            raise DataError(f"{path}: line {number}: token {token!r} is there a second time")
        ranks[token] = int(match[2])
    missing = sorted(set(range(len(ranks))) - set(ranks.values()))
    if missing:
        raise DataError(f"{path}: no token has rank {missing[0]}, but {len(ranks)} tokens have ranks from 0")
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise DataError(f"{path}: byte 0x{byte:02X} has no token, so not every text could be encoded")
    return ranks


def _encoding(pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    # Without any special token tiktoken's search for them stops at every character, and takes a third of the time.
    special = {SPECIAL_TOKENS[0]: len(ranks)}
    return tiktoken.Encoding("llama", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
