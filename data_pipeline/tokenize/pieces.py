"""Cutting a text where no merge of its tokenizer crosses, to encode every distinct piece once.

Byte-pair encoding joins two neighbours only if the result is in the vocabulary. So two characters that stand next to
each other in no token are never joined, and what is on both sides of them is encoded as if the other were not there:
merges are ordered by score and then from left to right, and this order within a piece is the same alone and in a text.
"""

import itertools
import re
from collections.abc import Callable, Iterable

import numpy as np
from sentencepiece import sentencepiece_model_pb2

SPACE_MARK = "\u2581"
"""The character sentencepiece writes for a space; in a text it would come back as one."""

LONGEST_PIECE = 32
"""Characters; longer pieces are encoded each time, as they rarely come back."""

MOST_PIECES = 1 << 18
"""Then the cache starts anew: some 50 MB."""

_BPE = 2  # TrainerSpec.ModelType.BPE
_NORMAL, _USER_DEFINED = 1, 4  # SentencePiece.Type


class PieceCache(dict[str, bytes]):
    """Piece to its ids, as the bytes of an int32 array."""

    def __init__(self, pattern: re.Pattern[str], encode: Callable[[str], np.ndarray]) -> None:
        """
        Args:
            pattern: matches a text piece by piece, without a gap.
            encode: piece to ids, int32.
        """
        super().__init__()
        self._find = pattern.findall
        self._encode = encode

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of all pieces of `text`, int32 of shape [tokens]."""
        return np.frombuffer(bytearray().join(map(self.__getitem__, self._find(text))), dtype=np.int32)

    def __missing__(self, piece: str) -> bytes:
        ids = self._encode(piece).tobytes()
        if len(piece) <= LONGEST_PIECE:
            if len(self) >= MOST_PIECES:
                self.clear()
            self[piece] = ids
        return ids


def piece_pattern(model: bytes) -> re.Pattern[str] | None:
    """Return a pattern that cuts a text into pieces that a sentencepiece model encodes independently of each other.

    A piece is any number of spaces and then characters that occur next to each other in some token, directly or by way
    of others. U+2581, which sentencepiece writes for a space, is a piece of its own.

    None if the model is not known to work like that: it normalises, is no BPE, has tokens with a space after other
    characters, or user-defined symbols, which are matched before any merge.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if (
        trainer.model_type != _BPE
        or not trainer.byte_fallback
        or trainer.treat_whitespace_as_suffix
        or normalizer.precompiled_charsmap
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or any(piece.type == _USER_DEFINED for piece in proto.pieces)
    ):
        return None
    words = [piece.piece.lstrip(SPACE_MARK) for piece in proto.pieces if piece.type == _NORMAL]
    if any(SPACE_MARK in word for word in words):
        return None
    together = [f"[{''.join(map(re.escape, sorted(group)))}]+" for group in _neighbours(words)]
    return re.compile(f"{SPACE_MARK}| *(?:{'|'.join([*together, f'[^ {SPACE_MARK}]'])})| +", re.DOTALL)


def _neighbours(words: Iterable[str]) -> list[set[str]]:
    """Group the characters that stand next to each other in `words`, the largest group first."""
    group_of: dict[str, set[str]] = {}
    for word in words:
        for left, right in itertools.pairwise(word):
            group, other = group_of.setdefault(left, {left}), group_of.setdefault(right, {right})
            if group is not other:
                group |= other
                group_of.update(dict.fromkeys(other, group))
    groups = {id(group): group for group in group_of.values()}.values()
    return sorted(groups, key=lambda group: (-len(group), min(group)))
