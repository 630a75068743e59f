"""Turns raw records into record batches, and counts each one that cannot become a document."""

import json
from itertools import accumulate
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from data_pipeline.config import InputConfig
from data_pipeline.document import SCHEMA, keyed_hashes, record_id
from data_pipeline.read.pieces import InputFile
from data_pipeline.report.statistics import EXAMPLE_CHARACTERS, StageStatistics

NAME = "read"
VERSION = 3

MAX_SOURCE_NAME = 120  # bytes; it becomes a directory name


PLAIN_ROLES = ("url", "date", "language", "content_type", "license", "opt_out")
"""Columns that are kept as text, whatever type a file gives them."""


class BadRecordError(Exception):
    """A record that cannot become a document; the message is the reason."""


def source_name(source: str) -> str:
    """Return `source` as a plain directory name.

    Letters, digits and `._-` stay; every other byte of its UTF-8 becomes `+` and two hexadecimal digits, and a name
    that does not start with a letter or digit gets `s+` in front. Different sources stay different.

    Raises:
        BadRecordError: the result is too long for a directory name.
    """
    name = quote(source, safe="").replace("~", "%7E").replace("%", "+")
    if name[0] in "._-":
        name = f"+{ord(name[0]):02X}{name[1:]}"
    if name[0] == "+":
        name = f"s+{name}"
    if len(name) > MAX_SOURCE_NAME:
        raise BadRecordError("source_name_too_long")
    return name


def source_label(name: str) -> str:
    """Return the source that `source_name` made a directory name of."""
    return unquote((name[2:] if name.startswith("s++") else name).replace("+", "%"))


class Rows:
    """Collects the records of one piece of a file."""

    def __init__(self, file: InputFile, settings: InputConfig, seed: int) -> None:
        self.file = file.path
        self.default_source = file.source
        self.published = file.published
        self.columns = settings.columns()
        self.seed = seed
        self.statistics = StageStatistics(NAME)
        self.bytes = 0  # of text waiting for `take`
        self.read = 0  # rows that held a record
        self.without_text = 0
        self.columns_seen: set[str] = set()
        self.first_row: list[Any] | None = None  # [row, its columns], to explain a wrong column name
        self._waiting: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def add(self, row: int, record: dict[str, Any], size: int) -> None:
        """Add a record; `size` is what it takes in the file, in bytes, for the count if it is bad."""
        self.read += 1
        self.columns_seen.update(name for name in self.columns.values() if record.get(name) is not None)
        if self.first_row is None:
            self.first_row = [row, sorted(map(str, record))]
        values = {role: record.get(column) for role, column in self.columns.items()}
        self.without_text += values["text"] is None
        self.add_document(row, values, size)

    def kinds(self, record: dict[str, Any]) -> set[type]:
        """Return the types of the values of a record that would be kept."""
        return {type(record.get(column)) for column in self.columns.values()}

    def add_document(self, row: int, values: dict[str, Any], size: int) -> None:
        """Add a record by the roles of its values: text, and source, url, date ... where it has them."""
        try:
            self._add(row, values)
        except BadRecordError as problem:
            self.problem(row, str(problem), size, _shown(values))

    def note(self, kind: str) -> None:
        """Count something that is no loss: a record of a kind that holds no document, or a repair."""
        self.statistics.noted[f"{NAME}.{kind}"] = self.statistics.noted.get(f"{NAME}.{kind}", 0) + 1

    def problem(self, row: int, reason: str, size: int, detail: str) -> None:
        """Count a row that is no document."""
        reason = f"{NAME}.{reason}"
        identifier = record_id(self.default_source, self.file, row, None, None)
        self.statistics.count(self.statistics.seen, self.default_source, None, size)
        self.statistics.count(self.statistics.dropped, self.default_source, reason, size)
        where = {"source": self.default_source, "file": self.file, "row": row, "language": None}
        shown = detail[:EXAMPLE_CHARACTERS].encode("utf-8", "replace").decode()
        hash_ = int(keyed_hashes([identifier], "example", self.seed)[0])
        self.statistics.example(reason, {"hash": hash_, "record_id": identifier.hex(), **where, "text": shown})

    def take(self) -> pa.Table | None:
        """Return what was collected since the last call, or None."""
        if not self._waiting["text"]:
            return None
        columns = {name: values for name, values in self._waiting.items() if name != "text"}
        arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
        table = pa.table([*arrays.values(), _joined(self._waiting["text"])], SCHEMA)
        self._waiting = {name: [] for name in SCHEMA.names}
        self.bytes = 0
        return table

    def notes(self) -> dict[str, Any]:
        """What is needed to notice a wrong column name once all pieces of the file are read."""
        return {
            "file": self.file,
            "rows": self.read,
            "without_text": self.without_text,
            "columns_seen": sorted(self.columns_seen),
            "first_row": self.first_row,
        }

    def _add(self, row: int, values: dict[str, Any]) -> None:
        if values["text"] is None:
            raise BadRecordError("missing_text")
        text = _encoded(values["text"])
        source = self.default_source
        if values.get("source") not in (None, "", b""):
            source = source_name(_decoded(values["source"], "source_is_not_a_string"))
        plain = {role: _plain(values.get(role)) for role in PLAIN_ROLES}
        document = {
            "record_id": record_id(source, self.file, row, plain["url"], plain["date"]),
            "source": source,
            "file": self.file,
            "row": row,
            **plain,
            "text": text,
            "published": self.published,
            "copies": 1,
            "cluster": None,
        }
        for name, waiting in self._waiting.items():
            waiting.append(document[name])
        size = len(text)
        self.statistics.count(self.statistics.seen, source, plain["language"], size)
        self.statistics.count(self.statistics.kept, source, plain["language"], size)
        self.bytes += size


def _encoded(text: Any) -> bytes:
    """Return a text in UTF-8: once, since from here on it is bytes."""
    try:
        encoded, decoded = (text, text.decode()) if isinstance(text, bytes) else (text.encode(), text)
    except UnicodeDecodeError as error:
        raise BadRecordError("invalid_utf8") from error
    except UnicodeEncodeError as error:
        raise BadRecordError("lone_surrogate") from error
    except AttributeError as error:
        raise BadRecordError("text_is_not_a_string") from error
    if not decoded or decoded.isspace():
        raise BadRecordError("empty_text")
    return encoded


def _joined(texts: list[bytes]) -> pa.LargeStringArray:
    """Return texts in valid UTF-8 as a column, copied once."""
    offsets = np.fromiter(accumulate(map(len, texts), initial=0), np.int64, len(texts) + 1)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)))


def _decoded(value: Any, problem: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRecordError("invalid_utf8") from error
    if not isinstance(value, str):
        raise BadRecordError(problem)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecordError("lone_surrogate") from error
    return value


def _plain(value: Any) -> str | None:
    """Return a URL, a date ... as text, whatever type the file gives it."""
    if value is None or value in ("", b""):
        return None
    return _decoded(value if isinstance(value, str | bytes) else str(value), "")


def _shown(values: dict[str, Any]) -> str:
    """Return the start of a bad record for the report, without a second copy of a long text."""
    cut = {
        role: value[:EXAMPLE_CHARACTERS] if isinstance(value, str | bytes) else value
        for role, value in values.items()
        if value is not None
    }
    return json.dumps(cut, default=repr)
