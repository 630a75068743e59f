import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text import Segmenter, Texts, Unspaced
from data_pipeline.text.characters import CODE_POINTS, DIGIT, LETTER, MARK, SPACE, UPPER, WORD, lowercase, properties
from data_pipeline.text.edits import join_lines, joined, strip_citations
from data_pipeline.text.words import HAS_LETTER, HAS_WORD_CHARACTER
from tests.data_pipeline.text import definitions
from tests.data_pipeline.text.definitions import columns_of, cut
from tests.data_pipeline.text.word_boundaries import segments

DEFINITIONS = {
    "words": (lambda found: found.words(), definitions.words),
    "lines": (lambda found: found.lines, definitions.lines),
    "raw_lines": (lambda found: found.raw_lines, lambda text: text.split("\n")),
    "paragraphs": (lambda found: found.paragraphs, definitions.paragraphs),
}


def test_properties_are_those_of_python_for_every_code_point():
    table = properties()
    for code_point in range(CODE_POINTS):
        character, bits = chr(code_point), int(table[code_point])
        assert bool(bits & SPACE) == character.isspace()
        assert bool(bits & LETTER) == character.isalpha()
        assert bool(bits & DIGIT) == character.isdecimal()
        assert bool(bits & UPPER) == character.isupper()
        assert bool(bits & WORD) == (character.isalnum() or character == "_")
        assert bool(bits & MARK) == (unicodedata.category(character)[0] == "M")
        lowered = character.lower()
        assert chr(lowercase()[code_point]) == (lowered if len(lowered) == 1 else character)


@pytest.mark.parametrize("kind", DEFINITIONS)
@given(rows=st.lists(definitions.texts, max_size=4))
@settings(deadline=None, max_examples=150)
def test_spans_are_those_of_the_plain_definition(kind, rows):
    found = columns_of(*rows)
    spans, plain = DEFINITIONS[kind][0](found), DEFINITIONS[kind][1]
    for document, text in enumerate(rows):
        pieces = plain(text)
        assert cut(found, spans, document) == pieces
        inside = slice(spans.first[document], spans.last[document])
        assert spans.characters[inside].tolist() == [len(piece) for piece in pieces]
        if kind == "words":
            letters = [any(c.isalpha() for c in piece) for piece in pieces]
            words = [any(c.isalnum() or c == "_" for c in piece) for piece in pieces]
            assert (spans.flags[inside] & HAS_LETTER > 0).tolist() == letters
            assert (spans.flags[inside] & HAS_WORD_CHARACTER > 0).tolist() == words
    everything = [piece for text in rows for piece in plain(text)]
    assert len(set(zip(everything, spans.hashes.tolist(), strict=True))) == len(set(everything))
    assert len(set(spans.hashes.tolist())) == len(set(everything))


@given(rows=st.lists(definitions.texts, max_size=4))
@settings(deadline=None, max_examples=150)
def test_characters_are_words_only_where_words_have_no_spaces(rows):
    found = columns_of(*rows)
    spans = found.words(unspaced=Unspaced.characters)
    for document, text in enumerate(rows):
        spaced = definitions.is_spaced(text)
        assert found.spaced[document] == spaced
        plain = definitions.words(text) if spaced else definitions.character_words(text)
        assert cut(found, spans, document) == plain


@given(text=definitions.texts)
@settings(deadline=None, max_examples=300)
def test_default_word_boundaries_are_those_of_the_rules_one_by_one(text):
    found = columns_of(text)
    plain = [each for each in segments(text) if any(c.isalnum() or c == "_" for c in each)]
    assert cut(found, found.words(Segmenter.uax29), 0) == plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u0301a", ["a"]),  # WB4 leaves a mark without a base alone
        ("can't 3.5 a_b don''t", ["can't", "3.5", "a_b", "don", "t"]),
        ("a.b. 1,234.5,", ["a.b", "1,234.5"]),
        ('צ"ל ', ['צ"ל']),
        ("カタカナ漢字ひ", ["カタカナ", "漢", "字", "ひ"]),
        ("a\u0301\u00ad-b", ["a\u0301\u00ad", "b"]),
        ("\u200d\u2139", ["\u200d\u2139"]),  # WB3c, a letter that is a pictograph
    ],
)
def test_default_word_boundaries_by_hand(text, words):
    found = columns_of(text)
    assert cut(found, found.words(Segmenter.uax29), 0) == words


@given(rows=st.lists(definitions.texts, max_size=4))
@settings(deadline=None, max_examples=150)
def test_the_census_counts_what_a_person_would(rows):
    found = columns_of(*rows)
    plain = {
        "characters": len,
        "visible": lambda text: sum(not c.isspace() for c in text),
        "unspaced": lambda text: len(definitions.UNSPACED.findall(text)),
        "newlines": lambda text: text.count("\n"),
        "hashes": lambda text: text.count("#"),
        "ellipses": lambda text: text.count("...") + text.count("…"),
        "curly_brackets": lambda text: text.count("{"),
    }
    for column, count in plain.items():
        assert found.census(column).tolist() == [count(text) for text in rows], column
    assert found.sentences.tolist() == [len(definitions.SENTENCE_END.findall(text)) for text in rows]


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("plain words", True),
        ("das ist schön", True),
        ("한국어는 띄어쓰기를 한다", True),
        ("これは日本語の文章です。", False),
        ("ภาษาไทยไม่มีช่องว่าง", False),
        ("the Chinese word 中文 once in a long English sentence", True),
        ("", True),
    ],
)
def test_scripts_without_spaces_are_noticed(text, spaced):
    assert columns_of(text).spaced.tolist() == [spaced]


def test_what_is_known_follows_the_documents_that_stay():
    found = columns_of("a b", "c", "d e f")
    words, sentences = found.words(), found.sentences
    kept = found.select(np.array([False, True, True]))
    assert kept.words().starts is words.starts  # nothing is split again
    assert [cut(kept, kept.words(), document) for document in range(2)] == [["c"], ["d", "e", "f"]]
    assert kept.sentences.tolist() == sentences[1:].tolist()
    assert kept.census("characters").tolist() == [1, 5]
    assert [cut(kept, kept.lines, document) for document in range(2)] == [["c"], ["d e f"]]


def test_no_documents_and_empty_documents_have_no_words():
    nothing = Texts.from_arrow(pa.array([], pa.large_string()))
    assert (len(nothing), nothing.words().counts.tolist(), nothing.lines.counts.tolist()) == (0, [], [])
    assert columns_of("", "").words().counts.tolist() == [0, 0]
    assert columns_of("", "").lines.counts.tolist() == [0, 0]


@given(rows=st.lists(definitions.texts, max_size=5), others=st.lists(definitions.texts, max_size=5))
@settings(deadline=None, max_examples=100)
def test_replaced_texts_have_their_own_words_and_the_others_keep_theirs(rows, others):
    others = others[: len(rows)]
    found = columns_of(*rows)
    assert found.word_counts().tolist() == [len(text.split()) for text in rows]
    assert len(found.words().first) == len(found.lines.first)
    replaced = found.replace(np.arange(len(others)), columns_of(*others))
    for document, text in enumerate([*others, *rows[len(others) :]]):
        assert cut(replaced, replaced.words(), document) == text.split()
        assert cut(replaced, replaced.lines, document) == definitions.lines(text)
        assert cut(replaced, replaced.lines.compact(), document) == definitions.lines(text)
    assert len(replaced.lines.compact().starts) == replaced.lines.counts.sum()
    assert replaced.word_counts().tolist() == replaced.words().counts.tolist()


@given(rows=st.lists(definitions.texts, max_size=5), seed=st.integers(0, 99), citations=st.booleans())
@settings(deadline=None, max_examples=100)
def test_lines_that_are_passed_on_are_those_of_the_joined_texts(rows, seed, citations):
    before = columns_of(*(f"{text}[1]\n x [edit]" if citations else text for text in rows))
    assert len(before.lines.first) == len(rows)
    texts, stripped = strip_citations(before)
    assert stripped.all() or not citations
    lines = texts.lines.compact()
    keep = np.random.default_rng(seed).random(len(lines.starts)) < 0.7
    array = join_lines(texts, lines, keep)
    passed_on, fresh = joined(texts, lines, keep, array), Texts.from_arrow(array)
    for name in ("starts", "ends", "characters", "hashes", "flags", "first", "last"):
        assert getattr(passed_on.lines, name).tolist() == getattr(fresh.lines, name).tolist(), name
