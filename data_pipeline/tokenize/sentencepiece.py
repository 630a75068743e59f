"""Any sentencepiece model, such as Llama 1's and 2's, behind the tokenizer interface."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from data_pipeline.tokenize.pieces import SPACE_MARK, PieceCache, piece_pattern
from data_pipeline.tokenize.tokenizer import check_ids, encode_around, utf8
from llama_foundation.errors import DataError

_REQUIRED_FIELDS = {1: "pieces", 2: "trainer_spec", 3: "normalizer_spec"}
"""Of ModelProto (google/sentencepiece, src/sentencepiece_model.proto), by field number, in the order of the file."""


class SentencePieceTokenizer:
    """A `Tokenizer`. Every text without lone surrogates comes back from `decode(encode_batch([text])[0])` unchanged,
    if the model has byte fallback and does not normalise, as Llama's; the ids are sentencepiece's own, except that
    U+2581 in a text is spelled in bytes so that it does not turn into a space."""

    file_name = "tokenizer.model"

    def __init__(self, path: Path, model: bytes) -> None:
        self.path = path
        _check_whole(model, self.path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not a sentencepiece model, or a damaged one: {error}") from error
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.vocabulary_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        for name, token_id in (("bos", self.bos_id), ("eos", self.eos_id)):
            if token_id < 0:
                raise DataError(
                    f"{self.path}: the model has no {name} token, and every document is stored as bos + tokens + eos; "
                    f"train one with {name}_id set"
                )
        self.end_of_text_ids = (self.eos_id,)
        control = [number for number in range(self.vocabulary_size) if self._processor.is_control(number)]
        self._special_ids = {self._processor.id_to_piece(number): number for number in control}
        self._space_mark_ids = self._byte_ids(SPACE_MARK)
        self._barrier, self._barrier_ids = self._find_barrier()
        pattern = piece_pattern(model) if self._barrier and self._space_mark_ids else None
        self._pieces = PieceCache(pattern, self._encode_piece) if pattern else None
        self._prefix = " " if self._encode(["a"])[0].tolist() == self._encode_piece(" a").tolist() else ""

    def encode_batch(self, texts: list[str], special_tokens: bool = False) -> list[np.ndarray]:
        if special_tokens:
            for number, text in enumerate(texts):
                utf8(number, text)
            return [encode_around(self._special_ids, text, lambda part: self.encode_batch([part])[0]) for text in texts]
        if self._pieces is not None:
            for number, text in enumerate(texts):
                utf8(number, text)
            return [self._pieces.encode(self._with_prefix(text)) for text in texts]
        ids = self._encode(texts)
        if self._barrier and self._space_mark_ids:
            for number, text in enumerate(texts):
                if SPACE_MARK in text:
                    ids[number] = self._encode_with_space_marks(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        plain = check_ids(ids, self)
        return self._processor.decode(plain) if plain else ""

    def _with_prefix(self, text: str) -> str:
        """Write out the space that the model puts in front of a text."""
        return self._prefix + text if text and text[0] != SPACE_MARK else text

    def _encode_piece(self, piece: str) -> np.ndarray:
        """Return the ids that `piece` has inside a text; the barrier keeps the space of a text's start away."""
        if piece == SPACE_MARK:
            return np.array(self._space_mark_ids, dtype=np.int32)
        # one by one: the library starts a thread for every list
        return np.array(self._processor.encode(self._barrier + piece)[len(self._barrier_ids) :], dtype=np.int32)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._processor.encode([utf8(number, text) for number, text in enumerate(texts)], num_threads=1)
        return [np.array(ids, dtype=np.int32) for ids in encoded]

    def _encode_with_space_marks(self, text: str) -> np.ndarray:
        """Encode what lies between the U+2581s, and put their bytes there.

        All parts but the first stand behind a barrier, whose ids are cut off again, to get no space of their own.
        """
        first, *others = text.split(SPACE_MARK)
        ids = self._encode([first, *(self._barrier + part for part in others)])
        width = len(self._barrier_ids)
        assert all(part[:width].tolist() == self._barrier_ids for part in ids[1:])
        pieces = [ids[0]]
        for part in ids[1:]:
            pieces += [np.array(self._space_mark_ids, dtype=np.int32), part[width:]]
        return np.concatenate(pieces)

    def _find_barrier(self) -> tuple[str, list[int]]:
        """Find a character without a token, which no merge crosses, and the ids of it at the start of a text.

        It is "" for a model that has no byte fallback or puts the space of a word behind it.
        """
        unknown = self._processor.unk_id()
        for character in map(chr, range(0x10FFFD, 0x100000, -1)):  # private use
            if self._processor.piece_to_id(character) == unknown:
                spelled = self._byte_ids(character)
                ids = self._encode([character])[0].tolist()
                return (character, ids) if spelled and ids[-len(spelled) :] == spelled else ("", [])
        return "", []

    def _byte_ids(self, character: str) -> list[int] | None:
        """The ids that spell `character` byte by byte; None for a model without byte fallback."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
        return ids if all(self._processor.is_byte(token_id) for token_id in ids) else None


def _check_whole(model: bytes, path: Path) -> None:
    """Refuse a file cut between two fields: sentencepiece would load it with defaults, as another kind of model."""
    seen = set(_field_numbers(model))
    if 1 not in seen:
        raise DataError(f"{path}: not a sentencepiece model")
    missing = [name for number, name in _REQUIRED_FIELDS.items() if number not in seen]
    if missing:
        raise DataError(f"{path}: the sentencepiece model is cut short: it has no {' and no '.join(missing)}")


def _field_numbers(message: bytes) -> Iterator[int]:
    """Yield the field numbers of a protocol buffer message, up to its end or to where it stops making sense."""
    position = 0
    try:
        while position < len(message):
            key, position = _varint(message, position)
            match key & 7:
                case 0:
                    _, position = _varint(message, position)
                case 1:
                    position += 8
                case 2:
                    length, position = _varint(message, position)
                    position += length
                case 5:
                    position += 4
                case _:
                    return
            if position <= len(message):
                yield key >> 3
    except IndexError:
        return


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
