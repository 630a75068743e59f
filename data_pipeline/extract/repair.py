"""Text whose UTF-8 bytes were once read as Windows-1252: "cafÃ©" back to "café"."""

import re

_BYTES = {ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)): byte for byte in range(0x80, 0x100)}
"""Windows-1252 as browsers have it: its five undefined bytes are control characters."""
_HIGH = "".join(map(chr, _BYTES))
_LEAD = "".join(character for character in _HIGH if 0xC2 <= _BYTES[ord(character)] <= 0xF4)
_FOLLOW = "".join(character for character in _HIGH if 0x80 <= _BYTES[ord(character)] <= 0xBF)
_SEQUENCE = re.compile(f"[{re.escape(_LEAD)}][{re.escape(_FOLLOW)}]{{1,3}}")
_ROUNDS = 2
"""Some pages have gone through it twice; each round must make sense on its own."""


def repair_mojibake(text: str) -> str:
    """Return `text` with the lines repaired that are UTF-8 read as Windows-1252 from end to end.

    A line is touched only when all its characters above ASCII form valid UTF-8 that way, which ordinary text in
    any language does not: two accented letters, or an accented letter and a sign, would have to stand together by
    chance in every place.
    """
    if text.isascii() or not _SEQUENCE.search(text):
        return text
    return "\n".join(_repair_line(line) for line in text.split("\n"))


def _repair_line(line: str) -> str:
    for _ in range(_ROUNDS):
        if not _SEQUENCE.search(line):
            break
        try:
            line = bytes(_byte(character) for character in line).decode()
        except ValueError:
            break
    return line


def _byte(character: str) -> int:
    number = ord(character)
    if number < 0x80:
        return number
    if number not in _BYTES:
        raise ValueError("this character is no byte of Windows-1252")
    return _BYTES[number]
