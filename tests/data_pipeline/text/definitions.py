"""What the compiled kernels must find, in plain Python."""

import re
import unicodedata

import pyarrow as pa
from hypothesis import strategies as st

from data_pipeline.text import Texts

UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff"
    "]"
)
SENTENCE_END = re.compile("[.!?]+[\"'\u201d\u2019)\\]]*(?=\\s|$)|[\u3002\uff01\uff1f]+")

PIECES = [
    *"ab,.!?'\"()[]{}#-*_19 \t\n\r\x0b\x1c\x85\xa0\u2003\u2028\u3000",
    *"éßжЖא\u05f4ア中日文ไท\u0e31한\u0301\u200d\u00ad\u200b😀🇩🇪\u2139…•。\uff01”\u2019",
    *["the", "word", "\n\n", "...", "\r\n", "3.5", "can't", "lorem ipsum", "[1]", "[edit]", "JavaScript", "x" * 40],
]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
"""Random Unicode, and random rows of what the rules look for."""


def columns_of(*rows: str) -> Texts:
    """Return texts that do not begin at byte 0 of their buffer."""
    return Texts.from_arrow(pa.array(["né", *rows], pa.large_string())[1:])


def cut(texts: Texts, spans, document: int) -> list[str]:
    """Return the spans of a document as strings."""
    ranges = range(spans.first[document], spans.last[document])
    return [bytes(texts.data[spans.starts[i] : spans.ends[i]]).decode() for i in ranges]


def is_spaced(text: str) -> bool:
    visible = "".join(text.split())
    return len(UNSPACED.findall(text)) <= 0.1 * len(visible)


def words(text: str) -> list[str]:
    return text.split()


def character_words(text: str) -> list[str]:
    """Words where every character of a script without spaces is one, with the marks on it."""
    found: list[str] = []
    for piece in text.split():
        for place, character in enumerate(piece):
            mark = unicodedata.category(character)[0] == "M"
            if place and (mark or not (UNSPACED.match(character) or any(map(UNSPACED.match, found[-1])))):
                found[-1] += character
            else:
                found.append(character)
    return found


def lines(text: str) -> list[str]:
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def paragraphs(text: str) -> list[str]:
    return [stripped for each in re.split(r"\n\s*\n", text) if (stripped := each.strip())]
