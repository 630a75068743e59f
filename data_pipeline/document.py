"""The Arrow schema that every stage speaks, and what a stage sees of a document.

A batch is `SCHEMA` and, behind it, one float32 column per score that a filter has measured, named
`<stage>.<score>` (null where the rule abstained).
"""

import re
import struct
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.binary(16), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("date", pa.string()),
        pa.field("language", pa.string()),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("content_type", pa.string()),  # text/html until it is extracted
        pa.field("license", pa.string()),
        pa.field("opt_out", pa.string()),  # what robots or the author said, as found
        pa.field("published", pa.bool_(), nullable=False),  # in shards that are out already
        pa.field("copies", pa.int64(), nullable=False),  # how many documents this one stands for
        pa.field("cluster", pa.binary(16)),  # which of them are copies of each other
    ]
)
"""`row` counts from 0: line of a JSONL file (blank lines count), row of a table; of a WARC file it is the byte at which
the record begins (behind the first record of a gzip member, one more for each record).
"""

UNSPACED_SHARE = 0.1
"""Words are not marked by spaces in a text of which more than this share of characters is in `_UNSPACED`."""

_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u109f"  # Tibetan, Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\uff66-\uff9d"  # half-width Katakana
    "]+"
)
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


def record_id(source: str, file: str, row: int, url: str | None, date: str | None) -> bytes:
    """Return the 16 bytes that name a record from reading to the shards; edits of the text never change them.

    128-bit xxh3 over the length-prefixed UTF-8 fields, so that ("ab", "c") and ("a", "bc") differ.
    """
    hasher = xxhash.xxh3_128()
    for value in (source, file, str(row), url, date):
        encoded = b"" if value is None else value.encode()
        hasher.update(struct.pack("<q", -1 if value is None else len(encoded)))
        hasher.update(encoded)
    return hasher.digest()


def keyed_hashes(record_ids: Sequence[bytes], purpose: str, seed: int) -> np.ndarray:
    """Return uint64 [N]: a pseudo-random number per record, independent between purposes and between seeds."""
    key = xxhash.xxh3_64_intdigest(f"{purpose}\0{seed}".encode())
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(each, key) for each in record_ids), np.uint64, len(record_ids))


def text_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Return int64 [rows]: the size of each text in UTF-8."""
    return pc.binary_length(batch["text"]).to_numpy(zero_copy_only=False).astype(np.int64)


class TextView:
    """One text with its words, lines and paragraphs, each computed at most once and shared by all rules."""

    def __init__(self, text: str, language: str | None) -> None:
        self.text = text
        self.language = language

    @cached_property
    def words(self) -> list[str]:
        """What stands between white space, punctuation included."""
        return self.text.split()

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """int64 [words], in characters."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without the white space around them."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines, without the white space around it."""
        return [stripped for each in _PARAGRAPH_BREAK.split(self.text) if (stripped := each.strip())]

    @cached_property
    def spaced(self) -> bool:
        """Whether the script marks words with spaces; where it does not, rules that count words abstain."""
        if self.text.isascii():
            return True
        unspaced = len(self.text) - len(_UNSPACED.sub("", self.text))
        return unspaced <= UNSPACED_SHARE * int(self.word_lengths.sum())

    @property
    def primary_language(self) -> str | None:
        """The language without its region: `en` for `en-US` and `en_GB`."""
        return re.split("[-_]", self.language)[0].lower() if self.language else None


class Documents:
    """A record batch and the views of its texts, which survive from one stage to the next."""

    def __init__(self, batch: pa.RecordBatch, views: list[TextView] | None = None) -> None:
        self.batch = batch
        self._views = views

    def __len__(self) -> int:
        return self.batch.num_rows

    @property
    def views(self) -> list[TextView]:
        if self._views is None:
            columns = zip(self.batch["text"].to_pylist(), self.batch["language"].to_pylist(), strict=True)
            self._views = [TextView(text, language) for text, language in columns]
        return self._views

    def select(self, keep: np.ndarray) -> "Documents":
        """Return the rows where `keep` (bool [rows]) is true."""
        if keep.all():
            return self
        views = self._views and [view for view, kept in zip(self._views, keep, strict=True) if kept]
        return Documents(self.batch.filter(pa.array(keep)), views)

    def with_texts(self, edited: dict[int, str]) -> "Documents":
        """Return the same records with the texts of some rows replaced."""
        if not edited:
            return self
        views = list(self.views)
        for row, text in edited.items():
            views[row] = TextView(text, views[row].language)
        texts = pa.array([view.text for view in views], pa.large_string())
        index = self.batch.schema.get_field_index("text")
        return Documents(self.batch.set_column(index, SCHEMA.field("text"), texts), views)

    def with_scores(self, scores: dict[str, list[float | None]]) -> "Documents":
        """Return the same records with one column more per score."""
        batch = self.batch
        for name, values in scores.items():
            batch = batch.append_column(name, pa.array(values, pa.float32()))
        return Documents(batch, self._views)
