"""Golden values counted by hand, and every share against a definition in plain loops."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters import gopher_repetition
from data_pipeline.filters.gopher_repetition import GopherRepetition
from data_pipeline.filters.words import Definition
from data_pipeline.text import Unspaced
from data_pipeline.text.hashing import FIRST_TABLE
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.filters.judging import judge
from tests.data_pipeline.text import definitions

WORDS = ["a", "bb", "ccc", "ж", "é\u0301", "ab", "…", "\n", "a\nbb", "\n\n"]


def grams_of(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def size(gram):
    return sum(map(len, gram))


def paper(text):
    words, found = text.split(), {}
    whole = size(words)
    for n in (2, 3, 4):
        counts = Counter(grams_of(words, n))
        top = max(counts.values(), default=0)
        longest = max((size(gram) for gram, count in counts.items() if count == top), default=0)
        found[f"top_{n}_gram"] = min(1.0, top * longest / whole) if top > 1 else 0.0
    for n in (5, 6, 7, 8, 9, 10):
        seen, covered = set(), set()
        for place, gram in enumerate(grams_of(words, n)):
            if gram in seen:
                covered.update(range(place, place + n))
            seen.add(gram)
        found[f"duplicated_{n}_grams"] = sum(len(words[i]) for i in covered) / whole
    for name, pieces in (("line", definitions.lines(text)), ("paragraph", definitions.paragraphs(text))):
        again = [piece for place, piece in enumerate(pieces) if piece in pieces[:place]]
        found[f"{name}s"], found[f"{name}_characters"] = len(again) / len(pieces), size(again) / size(pieces)
    return found


def datatrove(text):
    words, found = text.split(), {}
    for n in (2, 3, 4):
        counts = Counter(" ".join(gram) for gram in grams_of(words, n))
        gram, count = counts.most_common(1)[0] if counts else ("", 0)
        found[f"top_{n}_gram"] = len(gram) * count / len(text)
    for n in (5, 6, 7, 8, 9, 10):
        seen, place, characters = set(), 0, 0
        while place + n <= len(words):
            gram = tuple(words[place : place + n])
            characters += size(gram) if gram in seen else 0
            place += n if gram in seen else 1
            seen.add(gram)
        found[f"duplicated_{n}_grams"] = characters / len(text)
    for name, pieces in (("line", definitions.lines(text)), ("paragraph", definitions.paragraphs(text))):
        again = [piece for place, piece in enumerate(pieces) if piece in pieces[:place]]
        found[f"{name}s"], found[f"{name}_characters"] = len(again) / len(pieces), size(again) / len(text)
    return found


def dolma(text):
    words, found = text.split(), {}
    for n in (2, 3, 4):
        counts = Counter(grams_of(words, n))
        gram, count = counts.most_common(1)[0] if counts else ((), 0)
        found[f"top_{n}_gram"] = size(gram) * count / size(words)
    for n in (5, 6, 7, 8, 9, 10):
        counts = Counter(grams_of(words, n))
        part, whole = (sum(size(gram) * count for gram, count in counts.items() if count >= least) for least in (2, 1))
        found[f"duplicated_{n}_grams"] = part / whole if whole else 0.0
    lines = text.split("\n")
    again = [line for line in lines if lines.count(line) > 1]
    return found | {"lines": len(again) / len(lines), "line_characters": size(again) / size(words)}


@pytest.mark.parametrize("plain", [paper, datatrove, dolma])
@given(rows=st.lists(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join), min_size=1, max_size=3))
@settings(deadline=None, max_examples=150)
def test_shares_equal_the_plain_definition(plain, rows):
    rows = [row for row in rows if row.strip()] or ["a"]
    documents = make_documents([{"text": row} for row in rows])
    scores = gopher_repetition.measure(documents, GopherRepetition(definition=Definition(plain.__name__))).scores
    for document, text in enumerate(rows):
        for name, value in plain(text).items():
            assert scores[name][document] == pytest.approx(value), name


@pytest.mark.parametrize("plain", [paper, datatrove, dolma])
def test_shares_of_a_document_whose_tables_grow_equal_the_plain_definition(plain):
    generator = random.Random(0)
    words = generator.choices([f"{number:x}" for number in range(4 * FIRST_TABLE)], k=3 * FIRST_TABLE)
    words += words[100 : 100 + FIRST_TABLE]
    assert len(set(words)) > FIRST_TABLE
    text = "\n".join(" ".join(words[place : place + 5]) for place in range(0, len(words), 5))
    documents = make_documents([{"text": text}])
    scores = gopher_repetition.measure(documents, GopherRepetition(definition=Definition(plain.__name__))).scores
    for name, value in plain(text).items():
        assert scores[name][0] == pytest.approx(value), name


def judged(text, language="en", **limits):
    return judge(gopher_repetition, GopherRepetition(**limits), text, language)


def test_ngram_shares_counted_by_hand():
    # "to be or not to be": 13 characters in words; "to be" twice, 4 characters each
    scores = judged("to be or not to be").scores
    assert scores["top_2_gram"] == pytest.approx(8 / 13)
    assert scores["top_3_gram"] == 0
    # "a b c d e" again, a and b shared by neither: 5 of 12 characters, and 5 6-grams do not repeat
    scores = judged("a b c d e xy a b c d e").scores
    assert scores["duplicated_5_grams"] == pytest.approx(5 / 12)
    assert scores["duplicated_6_grams"] == 0


def test_duplicate_shares_count_from_the_second_occurrence():
    scores = judged("aa\nbbbb\naa\naa").scores
    assert (scores["lines"], scores["line_characters"]) == (2 / 4, 4 / 10)
    assert judged("").scores == {f"top_{n}_gram": 0 for n in (2, 3, 4)} | {
        f"duplicated_{n}_grams": 0 for n in range(5, 11)
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join("axbcxdefgx"), None),  # 2 of 10 lines, 2 of 10 characters: exactly 0.20
        ("x\n" * 5 + "\n".join("abcdefg"), "duplicate_lines"),  # 4 of 12
        ("x\n" * 4 + "\n".join("abcdefg"), "duplicate_line_characters"),  # 3 of 11 lines, 27 % of characters
        ("x\ny\n\nx\ny\n\na\nb\n\nx\ny", "duplicate_lines"),
        ("x y\n\nx y\n\nx y\n\nab", "duplicate_lines"),
        ("one two, one two, one two, a b c d e f", "top_2_gram"),  # "one two," twice: 14 of 27
        ("a b c d e f g h i j k l m n", None),
    ],
)
def test_the_first_rule_that_fails_names_the_drop(text, reason):
    assert judged(text).reason == reason


def test_duplicate_paragraphs_are_seen_when_lines_are_allowed():
    text = "first line\nsecond line\n\nother\n\nfirst line\nsecond line\n\nfirst line\nsecond line"
    assert judged(text, max_lines=1.0, max_line_characters=1.0).reason == "duplicate_paragraphs"


def test_a_long_repeated_passage_is_dropped_by_its_ngrams():
    passage = " ".join(f"word{i}" for i in range(30))
    rest = " ".join(f"other{i}" for i in range(60))
    verdict = judged(f"{passage} {rest} {passage}")
    assert verdict.reason == "duplicated_5_grams"
    # 30 of 120 words, of 4 + 1 or 2 digits against 5 + 1 or 2: 170 of 2 * 170 + 410 characters
    assert verdict.scores["duplicated_5_grams"] == pytest.approx(170 / 750)


def test_ngrams_abstain_without_spaces_and_lines_still_count():
    verdict = judged("床前明月光\n疑是地上霜", "zh")
    assert verdict.reason is None
    assert verdict.abstained == {f"top_{n}_gram" for n in (2, 3, 4)} | {f"duplicated_{n}_grams" for n in range(5, 11)}
    assert judged("床前明月光\n" * 5, "zh").reason == "duplicate_lines"
    asked = judged("床前明月光床前", "zh", unspaced=Unspaced.characters)
    assert asked.scores["top_2_gram"] == pytest.approx(4 / 7)
