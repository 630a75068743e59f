"""The Arrow schema that every stage speaks, and what a stage sees of its documents.

A batch is `SCHEMA` and, behind it, one float32 column per score that a filter has measured, named
`<stage>.<score>` (null where the rule abstained).
"""

import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_pipeline.text import Texts

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


class Documents:
    """A record batch and what is known of its texts, which survives from one stage to the next."""

    def __init__(self, batch: pa.RecordBatch, texts: Texts | None = None) -> None:
        self.batch = batch
        self._texts = texts

    def __len__(self) -> int:
        return self.batch.num_rows

    @property
    def texts(self) -> Texts:
        """The texts as columns of bytes, words and lines; what one filter has found the next one finds there."""
        if self._texts is None:
            self._texts = Texts.from_arrow(self.batch["text"])
        return self._texts

    def in_languages(self, languages: Sequence[str]) -> np.ndarray:
        """Return bool [rows]: whether the language is one of `languages`, whatever the region behind it says.

        `en` stands for `en-US` and `en_GB` too; a document of unknown language is in none.
        """
        encoded = self.batch["language"].dictionary_encode()
        primary = [re.split("[-_]", name)[0].lower() for name in encoded.dictionary.to_pylist()]
        known = np.array([*(name in languages for name in primary), False])
        return known[encoded.indices.fill_null(len(primary)).to_numpy(zero_copy_only=False)]

    def select(self, keep: np.ndarray) -> "Documents":
        """Return the rows where `keep` (bool [rows]) is true."""
        if keep.all():
            return self
        return Documents(self.batch.filter(pa.array(keep)), self._texts and self._texts.select(keep))

    def with_columns(self, columns: dict[str, pa.Array]) -> "Documents":
        """Return the same records with some columns replaced or, where they are new, added."""
        batch = self.batch
        for name, values in columns.items():
            index = batch.schema.get_field_index(name)
            if index >= 0:
                batch = batch.set_column(index, batch.schema.field(index), values)
            else:
                batch = batch.append_column(name, values)
        return Documents(batch, None if "text" in columns else self._texts)

    def with_measurement(self, stage: str, measurement: "Measurement") -> "Documents":
        """Return the same records as a stage left them: edited, with its scores as columns `<stage>.<score>`."""
        scores = {
            f"{stage}.{name}": pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null
            for name, values in measurement.scores.items()
        }
        edits = {} if measurement.texts is None else {"text": measurement.texts}
        edited = self.with_columns({**scores, **measurement.columns, **edits})
        return Documents(edited.batch, measurement.known) if edits else edited
