"""Masks personal data in a text that is shown to somebody: conservative, it rather masks too much than too little.

This is for the examples of the report. What is masked in the training text is the business of the PII stage.
"""

import re

_ADDRESS = re.compile(r"[^\s<>()\[\]{}\"',;:|@]{1,64}\s?(?:@|\[at\]|\(at\))\s?[\w-]+(?:\.[\w-]+)+", re.IGNORECASE)
_IP_4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_IP_6 = re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:|:(?=:)){2,7}:?(?:[0-9a-f]{1,4})?(?![\w:])", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])\+?\(?\d(?:[\s().\-/\u00a0\u2010-\u2013\u202f]{0,3}\d){6,24}(?!\w)")
_SHORTEST_CARD = 13  # digits, ISO/IEC 7812


def mask(text: str) -> str:
    """Return `text` with e-mail and IP addresses and every run of 7 to 25 digits replaced by what they were."""
    text = _ADDRESS.sub("[e-mail]", text)
    text = _IP_4.sub("[ip]", text)
    text = _IP_6.sub(lambda match: "[ip]" if match.group().count(":") > 2 or "::" in match.group() else match[0], text)
    return _NUMBER.sub(_number, text)


def _number(match: re.Match[str]) -> str:
    digits = sum(character.isdigit() for character in match.group())
    return "[card]" if digits >= _SHORTEST_CARD else "[phone]"
