"""The Arrow schema that every stage speaks, and what a stage sees of a document.

A batch is `SCHEMA` and, behind it, one float32 column per score that a filter has measured, named
`<stage>.<score>` (null where the rule abstained).
"""

import re
import struct
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

if TYPE_CHECKING:
    from data_pipeline.filters.measure import Measurement

SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.binary(16), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("date", pa.string()),
        pa.field("language", pa.string()),
        pa.field("content_type", pa.string()),
        pa.field("license", pa.string()),
        pa.field("opt_out", pa.string()),
        pa.field("published", pa.bool_(), nullable=False),
        pa.field("cluster", pa.binary(16)),
        pa.field("copies", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
"""
row           counts from 0: line of a JSONL file (blank lines count), row of a table; of a WARC file the byte at which
              the record begins (behind the first record of a gzip member, one more for each record)
content_type  text/html until `extract` has made text of it
license, opt_out  as the record states them
published     the document is in shards that are already out: it wins over its copies, and is not written again
cluster       record id that stands for a cluster of (near-)copies; null: none were found
copies        how many documents of the input this one stands for, itself included
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

    def with_columns(self, columns: dict[str, pa.Array]) -> "Documents":
        """Return the same records with some columns replaced or, where they are new, added."""
        batch = self.batch
        for name, values in columns.items():
            index = batch.schema.get_field_index(name)
            if index >= 0:
                batch = batch.set_column(index, batch.schema.field(index), values)
            else:
                batch = batch.append_column(name, values)
        return Documents(batch, None if columns.keys() & {"text", "language"} else self._views)

    def with_measurement(self, stage: str, measurement: "Measurement") -> "Documents":
        """Return the same records as a stage left them: edited, with its scores as columns `<stage>.<score>`."""
        scores = {
            f"{stage}.{name}": pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null
            for name, values in measurement.scores.items()
        }
        edits = {} if measurement.texts is None else {"text": measurement.texts}
        return self.with_columns({**scores, **measurement.columns, **edits})
