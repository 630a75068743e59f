"""UAX #29's rules WB3 to WB16 one by one, as patterns before and behind every position."""

import itertools

import regex

IGNORED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
LINE_END = r"[\p{WB=CR}\p{WB=LF}\p{WB=Newline}]"
LETTER, HEBREW = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]", r"\p{WB=Hebrew_Letter}"
MIDDLE_OF_WORD = r"[\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}]"
MIDDLE_OF_NUMBER = r"[\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}]"
NUMERIC, KATAKANA, CONNECTOR = r"\p{WB=Numeric}", r"\p{WB=Katakana}", r"\p{WB=ExtendNumLet}"
REGIONAL = r"\p{WB=Regional_Indicator}"
QUOTE = r"\p{WB=Double_Quote}"

AS_IS = [
    (False, r"\p{WB=CR}", r"\p{WB=LF}"),  # WB3
    (True, LINE_END, ""),  # WB3a
    (True, "", LINE_END),  # WB3b
    (False, r"\p{WB=ZWJ}", r"\p{Extended_Pictographic}"),  # WB3c
    (False, r"\p{WB=WSegSpace}", r"\p{WB=WSegSpace}"),  # WB3d
    (False, "", r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]"),  # WB4
]
WITHOUT_IGNORED = [
    ([LETTER], [LETTER]),  # WB5
    ([LETTER], [MIDDLE_OF_WORD, LETTER]),  # WB6
    ([LETTER, MIDDLE_OF_WORD], [LETTER]),  # WB7
    ([HEBREW], [r"\p{WB=Single_Quote}"]),  # WB7a
    ([HEBREW], [QUOTE, HEBREW]),  # WB7b
    ([HEBREW, QUOTE], [HEBREW]),  # WB7c
    ([NUMERIC], [NUMERIC]),  # WB8
    ([LETTER], [NUMERIC]),  # WB9
    ([NUMERIC], [LETTER]),  # WB10
    ([NUMERIC, MIDDLE_OF_NUMBER], [NUMERIC]),  # WB11
    ([NUMERIC], [MIDDLE_OF_NUMBER, NUMERIC]),  # WB12
    ([KATAKANA], [KATAKANA]),  # WB13
    ([f"(?:{LETTER}|{NUMERIC}|{KATAKANA}|{CONNECTOR})"], [CONNECTOR]),  # WB13a
    ([CONNECTOR], [f"(?:{LETTER}|{NUMERIC}|{KATAKANA})"]),  # WB13b
]
RULES = [(breaks, regex.compile(f"{before}\\Z"), regex.compile(behind)) for breaks, before, behind in AS_IS]
RULES += [
    (False, regex.compile("".join(each + IGNORED for each in before) + r"\Z"), regex.compile(IGNORED.join(behind)))
    for before, behind in WITHOUT_IGNORED
]


def segments(text: str) -> list[str]:
    """Return the text cut at its word boundaries."""
    bounds = [0, *(place for place in range(1, len(text)) if _is_boundary(text, place)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


def _is_boundary(text: str, place: int) -> bool:
    left = text[:place]
    for breaks, before, behind in RULES:
        if before.search(left) and behind.match(text, place):
            return breaks
    if regex.match(REGIONAL, text[place:]):  # WB15, WB16
        run = regex.search(f"(?:{REGIONAL}{IGNORED})+\\Z", left)
        return run is None or len(regex.findall(REGIONAL, run[0])) % 2 == 0
    return True
