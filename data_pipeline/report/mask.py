"""Masks personal data in a text that is shown to somebody: conservative, it rather masks too much than too little.

This is for the examples of the report. What is masked in the training text is the business of the PII stage.
Patterns begin with what they need most, since that is what makes a search in a text without it fast; what must not
stand before a match is looked at afterwards.
"""

import re

_ADDRESS = re.compile(r"[^\s<>()\[\]{}\"',;:|@]{1,64}\s?(?:@|\[at\]|\(at\))\s?[\w-]+(?:\.[\w-]+)+", re.IGNORECASE)
_IP_4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_IP_6 = re.compile(r"(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)
_NUMBER = re.compile(r"\d(?:[\s().\-/\u00a0\u2010-\u2013\u202f]{0,3}\d){6,24}(?!\w)")
_SHORTEST_CARD = 13  # digits, ISO/IEC 7812
_DIGITS_OF_AN_IP, _DIGITS_OF_A_PHONE = 4, 7
_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


def mask(text: str) -> str:
    """Return `text` with e-mail and IP addresses and every run of 7 to 25 digits replaced by what they were."""
    if "@" in text or "at]" in text.lower() or "at)" in text.lower():  # the pattern alone is slow where there is none
        text = _ADDRESS.sub("[e-mail]", text)
    if text.count(":") > 1:
        text = _IP_6.sub(_ip_6, text)
    if (digits := _digits(text)) >= _DIGITS_OF_AN_IP:
        text = _IP_4.sub(_ip_4, text)
    return _NUMBER.sub(_number, text) if digits >= _DIGITS_OF_A_PHONE else text


def _digits(text: str) -> int:
    if not text.isascii():
        return sum(map(str.isdigit, text))
    return len(text.encode().translate(None, delete=_NO_DIGITS))


def _ip_4(match: re.Match[str]) -> str:
    before = match.string[: match.start()][-1:]
    return match.group() if before.isdigit() or before == "." else "[ip]"


def _ip_6(match: re.Match[str]) -> str:
    """A time of day such as 12:30:59 has two colons, and no address has so few unless two stand together."""
    before = match.string[: match.start()][-1:]
    address = (match.group().count(":") > 2 or "::" in match.group()) and match.group().strip(":")
    return "[ip]" if address and not (before.isalnum() or before in ("_", ":")) else match.group()


def _number(match: re.Match[str]) -> str:
    before = match.string[: match.start()][-1:]
    if before.isalnum() or before == "_":
        return match.group()
    digits = sum(character.isdigit() for character in match.group())
    return "[card]" if digits >= _SHORTEST_CARD else "[phone]"
