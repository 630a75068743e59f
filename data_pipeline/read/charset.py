"""Bytes of a web page to text: which encoding, and what to do where the bytes do not fit it.

The order is that of the HTML standard (section 13.2.3.2, "Determining the character encoding"): byte order mark,
transport layer, `meta` element, guess. Unlike a browser, a declared encoding that does not fit the bytes gives way to
the next one that does.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_:.\-]{1,40})", re.IGNORECASE)
_META_BYTES = 4096
"""The standard looks at the first 1024 bytes; real pages put long scripts in front."""


def decode_page(payload: bytes, declared: str | None) -> tuple[str, bool]:
    """Return (text, whether some bytes fitted no encoding and became U+FFFD).

    Args:
        declared: charset of the Content-Type header, if it names one.
    """
    for mark, encoding in _MARKS:
        if payload.startswith(mark):
            return _replaced(payload[len(mark) :], encoding)
    found = _META.search(payload[:_META_BYTES])
    meta = found[1].decode("ascii") if found else None
    names = [name for label in (declared, meta, detect_encoding(payload)) if (name := _known(label))]
    for name in [*names, "utf-8"]:
        try:
            return payload.decode(name), False
        except (UnicodeDecodeError, LookupError):
            continue
    return _replaced(payload, next((name for name in names if name != "utf-8"), "utf-8"))


def _known(label: str | None) -> str | None:
    """Return Python's name of an encoding that the HTML standard allows, else None."""
    name = map_encoding_to_html5(label, fallback_utf8=False) if label else None
    try:
        return codecs.lookup(name).name if name else None
    except LookupError:
        return None


def _replaced(payload: bytes, encoding: str) -> tuple[str, bool]:
    text = payload.decode(encoding, "replace")
    return text, "\ufffd" in text
