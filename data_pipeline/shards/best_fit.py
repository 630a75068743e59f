"""Best-fit packing: documents into packs of a fixed number of tokens, cutting only those that are longer than one.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3: a document of n tokens is first cut into
n // S pieces of S tokens and a rest of n % S. The pieces are put into packs by best-fit decreasing (Johnson et al.
1974): the longest first, each into the fullest pack that still has room for it, a new one where none has. Since the
room of a pack is a whole number up to S, the fullest fitting pack is a look-up among S sizes and not a search among
packs.
"""

import numpy as np

_WORD = 9
_WORD_BITS = 1 << _WORD


def cut_documents(starts: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every document into pieces of `sequence_length` tokens and a rest.

    Args:
        starts: int64 [documents + 1], token offsets; the last one is the end.

    Returns:
        Token offsets (int64) and tokens (int64) of all pieces, in the order of the documents.
    """
    lengths = np.diff(starts)
    pieces = -(-lengths // sequence_length)  # an empty document has none
    document = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    piece_starts = starts[document] + number * sequence_length
    return piece_starts, np.minimum(starts[document + 1] - piece_starts, sequence_length)


def best_fit(lengths: np.ndarray, sequence_length: int) -> tuple[np.ndarray, int]:
    """Put pieces into packs by best-fit decreasing.

    Of equal pieces the earlier comes first; of equally full packs the one touched last is taken. So the result is a
    function of the arguments alone.

    Args:
        lengths: whole numbers [pieces], from 1 to `sequence_length`, in tokens.

    Returns:
        The pack of every piece (int64 [pieces]) and the number of packs. Pieces that fill a pack come first.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    full = int(np.searchsorted(-descending, -sequence_length, side="right"))
    values, counts = np.unique(descending[full:], return_counts=True)
    rooms = _Rooms(sequence_length)
    packs = full
    chosen: list[int] = []
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            room = rooms.smallest_from(length)
            if room is None:
                pack, room = packs, sequence_length
                packs += 1
            else:
                pack = rooms.take(room)
            # The fullest pack that fits stays the fullest after a piece, so equal pieces go on filling it.
            here = min(count, room // length)
            chosen += [pack] * here
            count -= here
            rooms.add(room - here * length, pack)
    result = np.empty(len(lengths), dtype=np.int64)
    result[order[:full]] = np.arange(full)
    result[order[full:]] = chosen
    return result, packs


class _Rooms:
    """The packs by how many tokens they have room for.

    `_words` has a bit for every room that some pack has, 512 to a word; `_used` has a bit for every word that is not
    zero. So the smallest room from a given one on is two operations on small integers.
    """

    def __init__(self, largest: int) -> None:
        self._packs: list[list[int]] = [[] for _ in range(largest + 1)]
        self._words = [0] * ((largest >> _WORD) + 1)
        self._used = 0

    def smallest_from(self, room: int) -> int | None:
        word = room >> _WORD
        bits = self._words[word] >> (room & (_WORD_BITS - 1))
        if bits:
            return room + _lowest(bits)
        later = self._used >> (word + 1)
        if not later:
            return None
        word += 1 + _lowest(later)
        return (word << _WORD) + _lowest(self._words[word])

    def take(self, room: int) -> int:
        packs = self._packs[room]
        pack = packs.pop()
        if not packs:
            word = room >> _WORD
            self._words[word] &= ~(1 << (room & (_WORD_BITS - 1)))
            if not self._words[word]:
                self._used &= ~(1 << word)
        return pack

    def add(self, room: int, pack: int) -> None:
        if room == 0:
            return
        packs = self._packs[room]
        if not packs:
            word = room >> _WORD
            self._words[word] |= 1 << (room & (_WORD_BITS - 1))
            self._used |= 1 << word
        packs.append(pack)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
