"""Copies of documents with a known share of their words edited, and how similar they really are."""

import random
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.document import Documents

_PIECES = re.compile(r"\S+|\s+")


def edited(text: str, rate: float, vocabulary: Sequence[str], generator: random.Random) -> str:
    """Return the text with round(rate * words) of its words, at least one if rate > 0, replaced, dropped or doubled by
    a new one behind them, a third each by chance."""
    pieces = _PIECES.findall(text)
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()]
    count = max(round(rate * len(places)), 1) if rate > 0 else 0
    for place in generator.sample(places, min(count, len(places))):
        kind, word = generator.randrange(3), generator.choice(vocabulary)
        pieces[place] = (word, "", f"{pieces[place]} {word}")[kind]
    return "".join(pieces)


def plant(
    documents: Documents, rates: Sequence[float], copies: int, min_words: int, seed: int
) -> tuple[Documents, dict[bytes, tuple[bytes, float]]]:
    """Return copies of documents of at least `min_words` words, no two of the same one, the same number for each rate;
    and record id of the copy -> (record id of the original, rate)."""
    texts = documents.batch["text"].to_pylist()
    identifiers = documents.batch["record_id"].to_pylist()
    words = [text.split() for text in texts]
    rows = [row for row in range(len(texts)) if len(words[row]) >= min_words]
    rows.sort(key=lambda row: xxhash.xxh3_128_digest(identifiers[row], seed))
    copies = min(copies, len(rows) // len(rates))
    chosen = rows[: copies * len(rates)]
    vocabulary = sorted({word for row in chosen for word in words[row]})
    originals: dict[bytes, tuple[bytes, float]] = {}
    for number, row in enumerate(chosen):
        name = xxhash.xxh3_128_digest(b"planted" + identifiers[row])
        originals[name] = (identifiers[row], rates[number % len(rates)])
    planted = Documents(documents.batch.take(pa.array(chosen, pa.int64()))).with_columns(
        {
            "record_id": pa.array(list(originals), pa.binary(16)),
            "text": pa.array(
                [
                    edited(texts[row], rate, vocabulary, random.Random(name))
                    for row, (name, (_, rate)) in zip(chosen, originals.items(), strict=True)
                ],
                pa.large_string(),
            ),
            "url": pa.nulls(len(chosen), pa.string()),
            "published": pa.array(np.zeros(len(chosen), bool)),
        }
    )
    return planted, originals


def shingles(text: str, words: int) -> set[tuple[str, ...]]:
    """Return the different runs of `words` words, in lower case and without punctuation; the whole text if shorter."""
    own = ["".join(filter(str.isalnum, word)) for word in text.lower().split()]
    own = [word for word in own if word]
    return {tuple(own[place : place + words]) for place in range(max(1, len(own) - words + 1))} if own else set()


def jaccard(one: set, other: set) -> float:
    """Return the size of the intersection over that of the union; 0 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def s_curve(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that a pair of this Jaccard similarity agrees in some band (Leskovec et al., Mining of
    Massive Datasets, section 3.4.2): 1 - (1 - s^r)^b."""
    return 1 - (1 - similarity**rows) ** bands
