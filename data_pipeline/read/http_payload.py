"""What an HTTP message carries, without its transfer and content codings, in bounded memory.

Archives often hold pages that are already decoded under headers that still say gzip or chunked. So a coding is undone
only where the bytes begin like it.
"""

import io
import re
import zlib

from fastwarc.stream_io import BrotliReader, ZstdReader

_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(;[^\r\n]{0,200})?\r?\n")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class DamagedPayloadError(Exception):
    """A page that cannot be had; `reason` names why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_payload(payload: bytes, transfer_encoding: str, content_encoding: str, limit: int) -> bytes:
    """Return the payload as its author wrote it.

    Raises:
        DamagedPayloadError: a coding breaks off or is unknown, or the result has more than `limit` bytes.
    """
    if "chunked" in transfer_encoding.lower() and _CHUNK.match(payload):
        payload = _join_chunks(payload)
    for coding in reversed([each.strip().lower() for each in content_encoding.split(",") if each.strip()]):
        payload = _undo(coding, payload, limit)
    return payload


def _join_chunks(payload: bytes) -> bytes:
    """Return the content of all chunks (RFC 9112, section 7.1); extensions and trailers are left out."""
    pieces, position = [], 0
    while head := _CHUNK.match(payload, position):
        start, end = head.end(), head.end() + int(head[1], 16)
        if end == start:
            return b"".join(pieces)
        if end > len(payload):
            break
        pieces.append(payload[start:end])
        position = end + (2 if payload[end : end + 2] == b"\r\n" else 1)
    raise DamagedPayloadError("damaged_payload", f"chunked: no chunk at byte {position} of {len(payload)}")


def _undo(coding: str, payload: bytes, limit: int) -> bytes:
    if coding in ("gzip", "x-gzip"):
        return _inflate(payload, 31, limit) if payload.startswith(b"\x1f\x8b") else payload
    if coding == "deflate":  # meant is zlib; some servers send bare deflate
        if payload[:1] == b"\x78" and int.from_bytes(payload[:2], "big") % 31 == 0:
            return _inflate(payload, 15, limit)
        return payload if payload.lstrip()[:1] == b"<" else _inflate(payload, -15, limit)
    if coding == "br":
        return payload if payload.lstrip()[:1] == b"<" else _read(BrotliReader(io.BytesIO(payload)), limit, coding)
    if coding == "zstd":
        return _read(ZstdReader(io.BytesIO(payload)), limit, coding) if payload.startswith(_ZSTD_MAGIC) else payload
    if coding == "identity" or payload.lstrip()[:1] == b"<":
        return payload
    raise DamagedPayloadError("unknown_content_encoding", coding)


def _inflate(payload: bytes, window_bits: int, limit: int) -> bytes:
    unpack = zlib.decompressobj(window_bits)
    try:
        decoded = unpack.decompress(payload, limit + 1)
    except zlib.error as error:
        raise DamagedPayloadError("damaged_payload", f"zlib: {error}") from error
    if len(decoded) > limit:
        raise DamagedPayloadError("payload_too_large", f"more than {limit:,} bytes")
    if not unpack.eof:
        raise DamagedPayloadError("damaged_payload", "the compressed page breaks off")
    return decoded


def _read(reader, limit: int, coding: str) -> bytes:
    pieces, size = [], 0
    try:
        while size <= limit and (piece := reader.read(min(1 << 20, limit + 1 - size))):
            pieces.append(piece)
            size += len(piece)
    except (OSError, ValueError) as error:
        raise DamagedPayloadError("damaged_payload", f"{coding}: {error}") from error
    if size > limit:
        raise DamagedPayloadError("payload_too_large", f"more than {limit:,} bytes")
    if not size:
        raise DamagedPayloadError("damaged_payload", f"{coding}: nothing comes out")
    return b"".join(pieces)
