"""What counts as personal data: one line per kind with its pattern, its check and where a match may begin.

A match of a kind is what its pattern matches at a position and its check accepts. A text is gone through from left to
right: at each position the first kind of the table that matches takes its span, and the search goes on behind it.
Patterns speak of bytes; digits and letters are ASCII.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

MAIL, DIGITS, COLON, SHAPED = 1, 2, 4, 8
"""Where a match may begin, as bits; `pii.candidates` says exactly: in front of an @, at a number, in front of a colon,
or at a word of letters and digits of some shape."""

_SEPARATOR = rb"(?:[ .\-]|\xc2\xa0|\xe2\x80[\x90-\x93\xaf])"  # also no-break space, hyphens and the en dash
_ALONE = rb"(?<![0-9A-Za-z_])(?<![0-9][.,])"  # no word and no number before
_END = rb"(?![0-9A-Za-z_])(?![.,][0-9])"
_NO_MORE = rb"(?!" + _SEPARATOR + rb"?[0-9])"  # nor another group of digits
_NO_LESS = rb"(?<![0-9][ .\-/])"

_FILE_SUFFIXES = frozenset(b"png jpg jpeg gif svg webp avif ico css js mjs html htm php json xml pdf mp4".split())
"""What "icon@2x.png" ends in; none of them is a top-level domain."""


@dataclass(frozen=True)
class Kind:
    """One kind of personal data."""

    name: str
    begins: int  # MAIL, DIGITS, COLON or SHAPED
    pattern: re.Pattern[bytes]
    accepts: Callable[[bytes], bool] = lambda match: True
    context: re.Pattern[bytes] | None = None  # must be found in the CONTEXT bytes before the match


CONTEXT = 40


def luhn(match: bytes) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, the sum is a multiple of 10."""
    digits = [int(digit) for digit in re.sub(rb"[^0-9]", b"", match).decode()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return any(digits) and (sum(digits[-1::-2]) + doubled) % 10 == 0


def mail(match: bytes) -> bool:
    local, _, domain = match.partition(b"@")
    suffix = domain.rpartition(b".")[2].lower()
    return suffix not in _FILE_SUFFIXES and b".." not in local and not local.endswith(b".")


def public_ipv4(match: bytes) -> bool:
    return _address(match, ipaddress.IPv4Address, public=True)


def any_ipv4(match: bytes) -> bool:
    return _address(match, ipaddress.IPv4Address, public=False)


def public_ipv6(match: bytes) -> bool:
    return _address(match, ipaddress.IPv6Address, public=True)


def any_ipv6(match: bytes) -> bool:
    return _address(match, ipaddress.IPv6Address, public=False)


_UNICAST = [ipaddress.IPv6Network(network) for network in ("2000::/3", "fc00::/7", "fe80::/10")]  # RFC 4291, RFC 4193


def _address(match: bytes, family: type, public: bool) -> bool:
    try:
        address = family(match.decode())
    except ValueError:
        return False
    if address.version == 6 and not any(address in network for network in _UNICAST):
        return False  # "a::b" of a programming language is an address that nobody has
    return address.is_global if public else not address.is_unspecified


def spanish(match: bytes) -> bool:
    """DNI and NIE: the letter is the number modulo 23 (Orden INT/2058/2008); X, Y and Z stand for 0, 1 and 2."""
    text = match.replace(b"-", b"").upper()
    number = int(text[:-1].translate(bytes.maketrans(b"XYZ", b"012")))
    return b"TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[-1]


_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21,
         2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23],
        strict=True,
    )
)  # fmt: skip


def italian(match: bytes) -> bool:
    """Codice fiscale: odd places by table, even places by value, sum modulo 26 (D.M. 23 December 1976)."""
    text = match.decode().upper()
    odd = sum(_ODD[each] for each in text[0:15:2])
    even = sum(int(each) if each.isdigit() else ord(each) - ord("A") for each in text[1:15:2])
    return chr(ord("A") + (odd + even) % 26) == text[15]


def dutch(match: bytes) -> bool:
    """BSN: weights 9 to 2 and −1, sum a multiple of 11 (the "elfproef")."""
    digits = [int(digit) for digit in re.sub(rb"[^0-9]", b"", match).decode()]
    weights = [9, 8, 7, 6, 5, 4, 3, 2, -1]
    return any(digits) and sum(d * w for d, w in zip(digits, weights, strict=True)) % 11 == 0


def brazilian(match: bytes) -> bool:
    """CPF: two check digits, each the sum with weights down to 2 times 10, modulo 11 and 10."""
    digits = [int(digit) for digit in re.sub(rb"[^0-9]", b"", match).decode()]
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum(digit * weight for digit, weight in zip(digits, range(length + 1, 1, -1), strict=False))
        if total * 10 % 11 % 10 != digits[length]:
            return False
    return True


def chinese(match: bytes) -> bool:
    """Resident identity number: GB 11643-1999, ISO 7064 MOD 11-2."""
    values = [10 if digit in b"Xx" else digit - 48 for digit in match]
    return sum(value * pow(2, 17 - place, 11) for place, value in enumerate(values)) % 11 == 1


_IBAN_LENGTHS = dict(
    pair.split(":")
    for pair in [
        "AD:24",
        "AE:23",
        "AL:28",
        "AT:20",
        "AZ:28",
        "BA:20",
        "BE:16",
        "BG:22",
        "BH:22",
        "BR:29",
        "BY:28",
        "CH:21",
        "CR:22",
        "CY:28",
        "CZ:24",
        "DE:22",
        "DK:18",
        "DO:28",
        "EE:20",
        "EG:29",
        "ES:24",
        "FI:18",
        "FO:18",
        "FR:27",
        "GB:22",
        "GE:22",
        "GI:23",
        "GL:18",
        "GR:27",
        "GT:28",
        "HR:21",
        "HU:28",
        "IE:22",
        "IL:23",
        "IQ:23",
        "IS:26",
        "IT:27",
        "JO:30",
        "KW:30",
        "KZ:20",
        "LB:28",
        "LC:32",
        "LI:21",
        "LT:20",
        "LU:20",
        "LV:21",
        "LY:25",
        "MC:27",
        "MD:24",
        "ME:22",
        "MK:19",
        "MR:27",
        "MT:31",
        "MU:30",
        "NL:18",
        "NO:15",
        "PK:24",
        "PL:28",
        "PS:29",
        "PT:25",
        "QA:29",
        "RO:24",
        "RS:22",
        "SA:24",
        "SC:31",
        "SD:18",
        "SE:24",
        "SI:19",
        "SK:24",
        "SM:27",
        "ST:25",
        "SV:28",
        "TL:23",
        "TN:24",
        "TR:26",
        "UA:29",
        "VA:22",
        "VG:24",
        "XK:20",
    ]
)


def iban(match: bytes) -> bool:
    """ISO 13616: the country's length, and the rearranged number is 1 modulo 97 (ISO 7064 MOD 97-10)."""
    text = match.replace(b" ", b"").decode().upper()
    if int(_IBAN_LENGTHS.get(text[:2], 0)) != len(text):
        return False
    return int("".join(str(int(each, 36)) for each in text[4:] + text[:4])) % 97 == 1


def phone(match: bytes) -> bool:
    """ITU-T E.164: at most 15 digits with the country code; fewer than 7 are nobody's. Extensions come on top."""
    digits = re.sub(rb"[^0-9]", b"", re.split(rb"[xe]", match)[0])
    return 7 <= len(digits) <= 15 and len(set(digits)) > 1


def _shaped(name: str, pattern: bytes, accepts: Callable[[bytes], bool]) -> Kind:
    return Kind(name, SHAPED, re.compile(_ALONE + pattern + _END), accepts)


_CARD = (  # the prefixes and lengths that payment schemes issue, bare or in their groups
    rb"(?:(?:4[0-9]|5[1-5]|2[2-7]|35|6[0-9])[0-9]{2}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    rb"|3[0-9]{3}([ \-])[0-9]{6}\2[0-9]{4,5}"
    rb"|4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|(?:5[1-5]|2[2-7]|35)[0-9]{14}"
    rb"|(?:2131|1800)[0-9]{11}|3[47][0-9]{13}|3[0689][0-9]{12}"
    rb"|6[0-9]{15})"
)
_S = _SEPARATOR
_BEFORE_PHONE = rb"(?<![0-9A-Za-z_+(])(?<![0-9][.,/:])" + _NO_LESS
_EXTENSION = rb"(?: ?(?:x|ext\.?) ?[0-9]{1,5})?"
_PHONE = (
    # international: a plus or 00, a country code and groups, one of which may be in parentheses
    rb"(?:\+[1-9][0-9]{0,2}" + _S + rb"?|00" + _S + rb"?[1-9][0-9]{0,2}" + _S + rb")(?:\(0?[0-9]{1,4}\)" + _S + rb"?)?"
    rb"[0-9]{1,14}(?:(?:" + _S + rb"|/)[0-9]{1,11}){0,6}" + _EXTENSION +
    # North America: (212) 555-0123, 212-555-0123, 1-212-555-0123 x12
    rb"|(?:1" + _S + rb")?(?:\([2-9][0-9]{2}\)" + _S + rb"?|[2-9][0-9]{2}" + _S + rb")[2-9][0-9]{2}" + _S + rb"[0-9]{4}"
    + _EXTENSION +
    rb"|[0-9]{3}([.\-])[0-9]{3}\1[0-9]{4}" + _EXTENSION +
    # an area code in parentheses: (020) 7946 0958, (69) 948-538
    rb"|\([0-9]{2,6}\)" + _S + rb"?[0-9]{3,8}(?:" + _S + rb"[0-9]{2,4}){0,2}"
    # a trunk prefix: 0171/1234567, 01 23 45 67 89, 0494 92 82 32, 027 896 92 86; "02134-1307" is a ZIP code
    rb"|0[1-9][0-9]{0,2}(?:" + _S + rb"[0-9]{2,3})?(?:" + _S + rb"[0-9]{2}){2,3}"
    rb"|(?![0-9]{5}-[0-9]{4}(?![0-9]))0[1-9][0-9]{1,4}(?:[ \-/]|\xc2\xa0)[0-9]{3,8}(?:[ \-][0-9]{3,4})?"
    # China's mobile numbers
    rb"|1[3-9][0-9](?:([ \-])[0-9]{4}\2[0-9]{4}|[0-9]{8})"
)  # fmt: skip
_GROUPS = rb"[0-9]{2,5}(?:[ .\-][0-9]{2,5}){1,5}|[0-9]{7,12}"  # of digits: a phone number where the text says so
_SAYS_PHONE = rb"(?i)\b(?:tele)?phone\b|\btel\b|\bmobile\b|\bfax\b|\bwhatsapp\b|\bcall(?: me| us)?\b"


def kinds(public_addresses_only: bool) -> tuple[Kind, ...]:
    """Return the table; where two kinds match at a position, the first wins."""
    compile_ = re.compile
    return (
        Kind(
            "email",
            MAIL,
            compile_(
                rb"(?<![0-9A-Za-z])[0-9A-Za-z][0-9A-Za-z._%+'\-]{0,63}@"
                rb"(?:[0-9A-Za-z](?:[0-9A-Za-z\-]{0,61}[0-9A-Za-z])?\.){1,8}(?:[A-Za-z]{2,24}|xn--[0-9A-Za-z\-]{2,58})"
                rb"(?![0-9A-Za-z])"
            ),
            mail,
        ),
        Kind(
            "ipv4",
            DIGITS,
            compile_(rb"(?<![0-9A-Za-z_.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_])(?!\.[0-9])"),
            public_ipv4 if public_addresses_only else any_ipv4,
        ),
        Kind(
            "ipv6",
            COLON,
            compile_(
                rb"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{0,33}(?:[0-9A-Fa-f]|(?<=:):)"
                rb"(?![0-9A-Za-z])(?!:[0-9A-Fa-f:])"
            ),
            public_ipv6 if public_addresses_only else any_ipv6,
        ),
        _shaped("iban", rb"[A-Za-z]{2}[0-9]{2}(?:(?: [0-9A-Z]{4}){2,7}(?: [0-9A-Z]{1,3})?|[0-9A-Za-z]{11,28})", iban),
        _shaped("es_dni", rb"(?:[0-9]{8}|[XYZxyz]-?[0-9]{7})-?[A-HJ-NP-TV-Za-hj-np-tv-z]", spanish),
        _shaped(
            "it_codice_fiscale",
            rb"[A-Za-z]{6}[0-9]{2}[A-EHLMPRSTa-ehlmprst][0-9]{2}[A-Za-z][0-9]{3}[A-Za-z]",
            italian,
        ),
        _shaped(
            "cn_resident_id",
            rb"[1-9][0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx]",
            chinese,
        ),
        Kind("card", DIGITS, compile_(_ALONE + rb"(?<![0-9]-)" + _CARD + _END + rb"(?!-[0-9])"), luhn),
        Kind(
            "us_ssn",  # the Social Security Administration's rules for numbers never given out
            DIGITS,
            compile_(
                _ALONE
                + rb"(?<![0-9]-)(?!000|666|9)[0-9]{3}([ \-])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}"
                + _END
                + rb"(?!-[0-9])"
            ),
        ),
        Kind(
            "br_cpf",
            DIGITS,
            compile_(_ALONE + rb"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}" + _END),
            brazilian,
        ),
        Kind(
            "br_cpf",
            DIGITS,
            compile_(_ALONE + rb"[0-9]{11}" + _END),
            brazilian,
            compile_(rb"(?i)\bCPF\b"),
        ),
        Kind(
            "nl_bsn",  # 1 of 11 numbers of 9 digits passes, so only where the text says what it is
            DIGITS,
            compile_(_ALONE + rb"(?:[0-9]{9}|[0-9]{4}\.[0-9]{2}\.[0-9]{3}|[0-9]{3}\.[0-9]{3}\.[0-9]{3})" + _END),
            dutch,
            compile_(rb"(?i)\bBSN\b|burgerservice|sofi-?nummer"),
        ),
        Kind(
            "phone",
            DIGITS,
            compile_(_BEFORE_PHONE + rb"(?:" + _PHONE + rb")" + _END + _NO_MORE),
            phone,
        ),
        Kind(
            "phone",
            DIGITS,
            compile_(_BEFORE_PHONE + rb"(?:" + _GROUPS + rb")" + _END + _NO_MORE),
            phone,
            compile_(_SAYS_PHONE),
        ),
        Kind("phone", DIGITS, compile_(rb"(?<![0-9A-Za-z_+])\+[1-9][0-9]{6,14}" + _END)),  # numbers follow it
    )


KIND_NAMES = tuple(dict.fromkeys(kind.name for kind in kinds(True)))


def match_at(text: bytes, position: int, begins: int, table: tuple[Kind, ...]) -> tuple[str, int] | None:
    """Return (kind, end) of what begins at a position, or None; only kinds with a bit of `begins` are tried."""
    for kind in table:
        match = kind.begins & begins and kind.pattern.match(text, position)
        if match and kind.accepts(match.group()):
            if kind.context and not kind.context.search(text, max(0, position - CONTEXT), position):
                continue
            return kind.name, match.end()
    return None
