"""Where the records of a WARC file begin and end (ISO 28500; WARC 1.1, sections 4 and A), whatever state it is in.

A record is whole when its bytes are followed by line ends and then by the next record or the end. Anything else is
counted as one bad record, and reading goes on at the next place that looks like a record: in a plain file behind the
next line that begins with `WARC/`, in a .warc.gz at the next gzip member that unpacks to `WARC/`.

What comes from a border (the start of a record, or of a member) on depends on the bytes behind it only. So a file cut
at borders that a walk over the whole file has found gives every record exactly once.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

BLOCK_BYTES = 64 * 1024
MAX_HEADER_BYTES = 64 * 1024
MAGIC = b"\x1f\x8b\x08"
"""Begin of a gzip member with deflate, the only method there is (RFC 1952, section 2.3)."""

_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_RECORD = b"WARC/"


@dataclass(frozen=True)
class Frame:
    """One record, or what stands in the place of one."""

    row: int  # byte of the file at which it begins; +1 for each record before it in the same gzip member
    size: int  # bytes, unpacked
    record: bytes | None = None  # header and content
    problem: str | None = None  # why there is no record
    border: bool = False  # whether reading may start here


def frames(file: BinaryIO, start: int, end: int, limit: int) -> Iterator[Frame]:
    """Yield the records of a plain file that begin in [start, end); `start` is 0 or a border."""

    def blocks_from(position: int) -> Iterator[bytes]:
        file.seek(position)
        return iter(lambda: file.read(BLOCK_BYTES), b"")

    for frame in _records(_Window(blocks_from, start), limit):
        if frame.row >= end:
            return
        yield replace(frame, border=frame.record is not None)


def gzip_frames(file: BinaryIO, start: int, end: int, limit: int) -> Iterator[Frame]:
    """Yield the records of the gzip members that begin in [start, end); `start` is 0 or a border."""
    position = start
    while position < end:
        member = _Member(file, position)
        if not member.looks_like_a_record():
            skipped = _next_member(file, position + 1) - position
            if not _is_padding(file, position, skipped):
                yield Frame(position, skipped, problem="not_a_warc_member")
            position += skipped
            continue
        yield from _member_frames(member, position, limit)
        position = member.end if member.problem is None else _next_member(file, position + 1)


def _member_frames(member: "_Member", position: int, limit: int) -> Iterator[Frame]:
    """Yield the records of one member; the last one of a damaged member is not to be trusted."""
    held = None
    for number, frame in enumerate(_records(_Window(member.blocks_from, 0), limit)):
        if held is not None:
            yield held
        held = replace(frame, row=position + number, border=number == 0)
        if number >= member.progress:  # rows would run into those of the next member; no honest file has such records
            held = replace(held, record=None, problem="too_many_records_in_a_member")
            member.drain()
            break
    if held is None:
        assert member.problem is not None
        held = Frame(position, 0, border=True)
    if member.problem is not None:
        held = replace(held, record=None, problem="damaged_gzip")
    yield held


class _Member:
    """One gzip member, unpacked block by block; after the last block `end` or `problem` is known."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._start = start
        self.end = start
        self.progress = 0  # bytes of the member that are unpacked
        self.problem: str | None = None

    def looks_like_a_record(self) -> bool:
        self._file.seek(self._start)
        head = self._file.read(BLOCK_BYTES)
        if not head.startswith(MAGIC):
            return False
        try:
            text = zlib.decompressobj(31).decompress(head, 1024)
        except zlib.error:
            return False
        return text.lstrip(b"\r\n").startswith(_RECORD)

    def blocks_from(self, position: int) -> Iterator[bytes]:
        """Yield what the member holds from byte `position` on."""
        self.problem, self.progress = None, 0
        for block in self._blocks():
            if position < len(block):
                yield block[position:]
            position = max(0, position - len(block))

    def drain(self) -> None:
        """Go to the end, to learn where it is."""
        for _ in self.blocks_from(0):
            pass

    def _blocks(self) -> Iterator[bytes]:
        self._file.seek(self._start)
        unpack = zlib.decompressobj(31)
        waiting, taken = b"", 0
        while not unpack.eof:
            if not waiting:
                waiting = self._file.read(BLOCK_BYTES)
                taken += len(waiting)
            if not waiting:
                self.problem = "it breaks off"
                return
            try:
                block = unpack.decompress(waiting, BLOCK_BYTES)
            except zlib.error as error:
                self.problem = str(error)
                return
            waiting = unpack.unconsumed_tail
            self.progress = taken - len(unpack.unused_data if unpack.eof else waiting)
            if block:
                position = self._file.tell()  # the reader of the blocks may look elsewhere
                yield block
                self._file.seek(position)
        self.end = self._start + self.progress


def _next_member(file: BinaryIO, position: int) -> int:
    """Return where the next member that holds a record begins at or behind `position`, or the end of the file."""
    file.seek(position)
    held = b""
    while block := file.read(BLOCK_BYTES):
        held += block
        found = held.find(MAGIC)
        while found >= 0:
            if _Member(file, position + found).looks_like_a_record():
                return position + found
            found = held.find(MAGIC, found + 1)
        keep = min(len(held), len(MAGIC) - 1)
        position += len(held) - keep
        held = held[len(held) - keep :]
        file.seek(position + keep)
    return position + len(held)


def _is_padding(file: BinaryIO, position: int, size: int) -> bool:
    file.seek(position)
    while size > 0 and (block := file.read(min(size, BLOCK_BYTES))):
        if block.strip(b"\0"):
            return False
        size -= len(block)
    return True


class _Window:
    """The next bytes of a stream, as many as are asked for."""

    def __init__(self, blocks_from: Callable[[int], Iterator[bytes]], position: int) -> None:
        self._blocks_from = blocks_from
        self.rewind(position)

    def rewind(self, position: int) -> None:
        self.position = position  # of the first byte held
        self.held = bytearray()
        self._blocks = self._blocks_from(position)

    def need(self, size: int) -> bool:
        """Hold at least `size` bytes; return whether there are so many."""
        while len(self.held) < size and (block := next(self._blocks, b"")):
            self.held += block
        return len(self.held) >= size

    def drop(self, size: int) -> int:
        """Go forward; return by how many bytes, fewer only at the end."""
        dropped = 0
        while dropped < size and self.need(1):
            step = min(size - dropped, len(self.held))
            del self.held[:step]
            dropped += step
            self.position += step
        return dropped

    def drop_line_ends(self) -> int:
        dropped = 0
        while self.need(1) and self.held[0] in b"\r\n":
            dropped += self.drop(len(self.held) - len(self.held.lstrip(b"\r\n")))
        return dropped

    def drop_to_record(self) -> int:
        """Go forward to the next line that begins with `WARC/`, or to the end; return by how many bytes."""
        dropped, mark = 0, b"\n" + _RECORD
        while self.need(len(mark)):
            found = self.held.find(mark)
            if found >= 0:
                return dropped + self.drop(found + 1)
            dropped += self.drop(len(self.held) - len(mark) + 1)
        return dropped + self.drop(len(self.held))


def _records(window: _Window, limit: int) -> Iterator[Frame]:
    """Yield what a stream holds, in order, with the position in the stream as row."""
    while True:
        window.drop_line_ends()
        if not window.need(1):
            return
        row = window.position
        problem, size = _measure(window)
        if problem is None and size > limit:
            window.drop(size)
            problem = "record_too_long" if window.position == row + size and _is_followed(window, 0) else "wrong_length"
            if problem == "record_too_long":
                yield Frame(row, size, problem=problem)
                continue
            window.rewind(row)  # the length is a lie, and records may stand in what was skipped
        elif problem is None and not window.need(size):
            problem = "truncated_record"
        elif problem is None and not _is_followed(window, size):
            problem = "wrong_length"
        if problem is not None:
            yield Frame(row, window.drop_to_record(), problem=problem)
            continue
        record = bytes(window.held[:size])
        window.drop(size)
        yield Frame(row, size, record)


def _measure(window: _Window) -> tuple[str | None, int]:
    """Return (what is wrong, bytes of the record with its header)."""
    window.need(len(_RECORD))
    if not window.held.startswith(_RECORD):
        return "not_a_warc_record", 0
    size = 1024
    while True:
        whole = not window.need(size)
        if found := _HEADER_END.search(window.held, 0, MAX_HEADER_BYTES):
            break
        if whole or size >= MAX_HEADER_BYTES:
            return ("truncated_record" if whole else "damaged_header"), 0
        size *= 2
    length = _LENGTH.search(window.held, 0, found.start() + 2)
    return (None, found.end() + int(length[1])) if length else ("damaged_header", 0)


def _is_followed(window: _Window, size: int) -> bool:
    """Whether `size` bytes ahead a record may end: line ends, the next record, or nothing follow."""
    window.need(size + len(_RECORD))
    behind = window.held[size : size + len(_RECORD)]
    return not behind or behind[:1] in (b"\r", b"\n") or behind == _RECORD
