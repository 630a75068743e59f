"""Cutting byte ranges out of texts so that what is left still reads as text."""

import numpy as np
import pyarrow as pa

from data_pipeline.text.characters import is_unspaced


def cut_spans(
    texts: pa.Array, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[pa.LargeStringArray, dict[str, int]]:
    """Cut the union of the ranges out of each text.

    Args:
        texts: large_string [texts].
        rows, starts, ends: int64 [ranges], bytes of the text; every range begins and ends with a word.

    Returns:
        the texts; and what was cut: documents, spans and bytes.
    """
    order = np.lexsort((starts, rows))
    cut: dict[int, list[list[int]]] = {}
    for row, start, end in zip(rows[order].tolist(), starts[order].tolist(), ends[order].tolist(), strict=True):
        spans = cut.setdefault(row, [])
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([start, end])
    out = texts.to_pylist()
    lost = 0
    for row, spans in cut.items():
        data = out[row].encode()
        bounds = [0, *(place for span in spans for place in span), len(data)]
        pieces = [data[start:end].decode() for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
        out[row] = join(pieces)
        lost += len(data) - len(out[row].encode())
    counts = {"cut_documents": len(cut), "cut_spans": sum(map(len, cut.values())), "cut_bytes": lost}
    return pa.array(out, pa.large_string()), counts


def join(pieces: list[str]) -> str:
    """Join what stood around the cuts.

    Of the white space on both sides of a cut the one with more line ends stays, the first of equals; two words that
    would grow together get a space; a text that was cut at its start or end has no white space there.
    """
    parts: list[str] = []
    between = ""
    for number, piece in enumerate(pieces):
        body = piece.strip()
        if not body:
            between = _better(between, piece)
            continue
        before = piece[: len(piece) - len(piece.lstrip())]
        if not parts:
            parts = [body] if number else [before, body]
        else:
            between = _better(between, before)
            if not between and not (is_unspaced(parts[-1][-1]) or is_unspaced(body[0])):
                between = " "
            parts += [between, body]
        between = piece[len(piece.rstrip()) :]
    return "".join([*parts, between]) if pieces[-1].strip() else "".join(parts)


def _better(one: str, other: str) -> str:
    return other if other.count("\n") > one.count("\n") else one or other
