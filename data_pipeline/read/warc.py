"""WARC and WET: web pages as they were crawled, and the text that somebody has taken out of them.

`response` and `resource` records with status 200 and a type of text become documents; HTML stays HTML until the stage
`extract`. Other kinds of records (requests, metadata, revisits ...) hold no document and are noted by kind.
"""

import html
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

from fastwarc.warc import WarcRecord, WarcRecordType

from data_pipeline.config import InputConfig
from data_pipeline.read.charset import decode_page
from data_pipeline.read.http_payload import DamagedPayloadError, decode_payload
from data_pipeline.read.languages import TWO_LETTERS
from data_pipeline.read.pieces import InputFile, Piece
from data_pipeline.read.rows import Rows
from data_pipeline.read.storage import open_file
from data_pipeline.read.warc_frames import Frame, frames, gzip_frames

HTML = "text/html"
PLAIN = "text/plain"
_TYPES = {HTML: HTML, "application/xhtml+xml": HTML, PLAIN: PLAIN}

_HEAD_CHARACTERS = 64 * 1024
_META = re.compile(r"<meta\s[^>]{1,1000}>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"([a-z-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))", re.IGNORECASE)
_RESTRICTS = re.compile(r"(?:^|[\s,:])(no[a-z]+|unavailable_after)\b", re.IGNORECASE)
"""noindex, nofollow, noarchive, noai, none ...; `index, follow` and limits of previews keep nobody out."""


def cut(file: InputFile, partition_bytes: int, settings: InputConfig) -> list[Piece]:
    """Return the whole file; `settle` cuts it at records."""
    return [Piece(file, 0, file.size, 0)] if file.size else []


def needs_survey(piece: Piece, partition_bytes: int) -> bool:
    """Whether the file is large enough to be shared."""
    return piece.file.size > partition_bytes


def survey(piece: Piece, partition_bytes: int, settings: InputConfig) -> list[int]:
    """Return borders, about `partition_bytes` apart in the file, the first of which is 0."""
    borders = [0]
    with open_file(piece.file.path) as file:
        for frame in _frames(file, piece, settings):
            if frame.border and frame.row - borders[-1] >= partition_bytes:
                borders.append(frame.row)
    return borders


def settle(pieces: list[Piece], surveys: dict[Piece, list[int]]) -> list[Piece]:
    """Return one piece per border."""
    settled = []
    for piece in pieces:
        borders = [*surveys.get(piece, [0]), piece.end]
        settled += [Piece(piece.file, start, end, start) for start, end in pairwise(borders)]
    return settled


def read(piece: Piece, settings: InputConfig, rows: Rows) -> Iterator[None]:
    """Add the documents of a piece to `rows`; yields after each record."""
    with open_file(piece.file.path) as file:
        for frame in _frames(file, piece, settings):
            if frame.problem is not None:
                rows.problem(frame.row, frame.problem, frame.size, f"{frame.size:,} bytes")
            else:
                _add_record(frame, settings, rows)
            yield


def _frames(file: BinaryIO, piece: Piece, settings: InputConfig) -> Iterator[Frame]:
    cut_ = gzip_frames if piece.file.path.endswith(".gz") else frames
    return cut_(file, piece.start, piece.end, settings.max_record_bytes)


def _add_record(frame: Frame, settings: InputConfig, rows: Rows) -> None:
    assert frame.record is not None
    try:
        record = WarcRecord.from_bytes(frame.record)
    except (OSError, ValueError) as error:
        return rows.problem(frame.row, "damaged_header", frame.size, str(error))
    headers = record.headers
    values: dict[str, str | None] = {
        "url": (headers.get("WARC-Target-URI") or "").strip("<> ") or None,
        "date": headers.get("WARC-Date"),
    }
    if record.record_type == WarcRecordType.conversion:
        language = (headers.get("WARC-Identified-Content-Language") or "").split(",")[0].strip()
        values |= {"language": TWO_LETTERS.get(language, language), "content_type": PLAIN}
        text, repaired = decode_page(record.reader.read(), "utf-8")
    elif record.record_type in (WarcRecordType.response, WarcRecordType.resource):
        try:
            text, repaired = _page(record, settings.max_record_bytes, values)
        except DamagedPayloadError as error:
            return rows.problem(frame.row, error.reason, frame.size, f"{values['url']}: {error}")
    else:
        return rows.note(f"warc_{record.record_type}")
    if repaired:
        rows.note("undecodable_bytes_replaced")
    rows.add_document(frame.row, {"text": text, **values}, frame.size)


def _page(record: WarcRecord, limit: int, values: dict[str, str | None]) -> tuple[str, bool]:
    """Return (text, repaired) of a response or resource; puts its type and its robots rules into `values`."""
    charset, robots = None, []
    if record.is_http:
        try:
            record.parse_http(auto_decode="none", quirks_mode=True)
        except (OSError, ValueError) as error:
            raise DamagedPayloadError("damaged_http_header", str(error)) from error
        http = record.http_headers
        if http is None or http.status_code is None:
            raise DamagedPayloadError("damaged_http_header", "no status line")
        if http.status_code != 200:
            raise DamagedPayloadError("http_status_not_200", f"status {http.status_code}")
        mime, charset = record.http_content_type, record.http_charset
        robots = [f"X-Robots-Tag: {value}" for value in http.get_multiple("X-Robots-Tag") if _RESTRICTS.search(value)]
        codings = [http.get(name) or "" for name in ("Transfer-Encoding", "Content-Encoding")]
        payload = decode_payload(record.reader.read(), codings[0], codings[1], limit)
    else:
        mime = record.headers.get("Content-Type")
        payload = record.reader.read()
    kind = (mime or "").split(";")[0].strip().lower()
    if kind not in _TYPES:
        raise DamagedPayloadError("not_a_text_type", kind or "no type")
    text, repaired = decode_page(payload, charset)
    values["content_type"] = _TYPES[kind]
    if _TYPES[kind] == HTML:
        robots += robots_rules(text)
    values["opt_out"] = "; ".join(robots) or None
    return text, repaired


def robots_rules(page: str) -> list[str]:
    """Return the `meta` elements of a page that keep robots out, such as "meta robots: noindex, noai"."""
    rules = []
    for element in _META.findall(page, 0, _HEAD_CHARACTERS):
        attributes = {
            name.lower(): html.unescape(first or second or third)
            for name, first, second, third in _ATTRIBUTE.findall(element)
        }
        name, content = attributes.get("name", "").lower(), attributes.get("content", "").strip()
        if (name == "robots" and _RESTRICTS.search(content)) or (name == "tdm-reservation" and content == "1"):
            rules.append(f"meta {name}: {content}")
    return rules
