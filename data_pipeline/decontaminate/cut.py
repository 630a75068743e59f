"""Cutting matches out of a document with what stands around them (Brown et al. 2020, appendix C)."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.decontaminate.settings import Decontaminate


@dataclass(frozen=True)
class Cut:
    """What is left of a document: `ranges` are the bytes of its text that stay; None: drop it for `reason`."""

    text: str | None
    ranges: list[tuple[int, int]]
    reason: str = ""


def cut(text: str, spans: list[tuple[int, int]], settings: Decontaminate) -> Cut:
    """Cut byte ranges and `window_characters` on both sides out of a text; drop the short pieces between.

    The pieces stay one document, a blank line between them; the paper made a document of each.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    at_byte = np.r_[0, np.cumsum(data & 0xC0 != 0x80)]  # characters that begin before each byte
    at_character = np.r_[np.flatnonzero(data & 0xC0 != 0x80), len(data)]
    pieces, done = [], 0
    for start, end in sorted((int(at_byte[start]), int(at_byte[end])) for start, end in spans):
        if start - settings.window_characters > done:
            pieces.append((done, start - settings.window_characters))
        done = max(done, min(len(text), end + settings.window_characters))
    if done < len(text):
        pieces.append((done, len(text)))
    if len(pieces) > settings.max_pieces:
        return Cut(None, [], "too_many_pieces")
    pieces = [(start, end) for start, end in pieces if end - start >= settings.min_piece_characters]
    left = [stripped for start, end in pieces if (stripped := text[start:end].strip())]
    if not left:
        return Cut(None, [], "nothing_left")
    return Cut("\n\n".join(left), [(int(at_character[start]), int(at_character[end])) for start, end in pieces])
