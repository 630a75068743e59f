"""Write word_break.tsv, the properties behind Unicode's default word boundaries, from the `regex` module's data.

python -m data_pipeline.text.make_word_break
"""

from itertools import groupby

import regex

from data_pipeline.text.word_break import CLASSES, PATH


def main() -> None:
    patterns = [(name, regex.compile(rf"\p{{WB={name}}}")) for name in CLASSES[1:-1]]
    patterns.append((CLASSES[-1], regex.compile(r"\p{Extended_Pictographic}")))
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    names: dict[int, str] = {}
    for name, pattern in patterns:
        for found in pattern.finditer(characters):
            names.setdefault(ord(found[0]), name)  # PICTOGRAPHIC_LETTERS stay letters
    rows = []
    for (_, name), group in groupby(enumerate(sorted(names)), lambda each: (each[1] - each[0], names[each[1]])):
        code_points = [code_point for _, code_point in group]
        rows.append(f"{code_points[0]:X}\t{code_points[-1]:X}\t{name}\n")
    PATH.write_text(f"# made by make_word_break.py from regex {regex.__version__}\n{''.join(rows)}")


if __name__ == "__main__":
    main()
