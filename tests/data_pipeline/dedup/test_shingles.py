import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup import shingles, signatures
from data_pipeline.dedup.characters import folding
from data_pipeline.dedup.hashing import random_numbers, text_buffers

UNSPACED = [(0x0E00, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)]
UNSPACED += [(0xF900, 0xFAFF), (0x20000, 0x3FFFF), (0xFF66, 0xFF9D)]

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("abcAB12 \n\t.,'-\u00c9\u00e9\u0130\u4e2d\u6587\u5b57\u3042\u0e01\u0e33\u20000\u0301 \u3000"),
    ),
    max_size=60,
)


def tokens_of(text):
    """The tokens by their definition: (token, whether it is a character of a script without spaces)."""
    found, word = [], ""
    for character in text + " ":
        code, category = ord(character), unicodedata.category(character)
        kept = category[0] in "LMN" if code < 0x20000 else code < 0x40000
        if character.isspace() or category == "Cc" or (kept and any(a <= code <= b for a, b in UNSPACED)):
            if word:
                found.append((word, False))
            word = ""
            if kept:
                found.append((character, True))
        elif kept:
            word += character.lower()[0]
    return found


def shingles_of(text, words, characters):
    tokens = tokens_of(text)
    found = []
    for place, (_, alone) in enumerate(tokens, 1):
        size = characters if alone else words
        if place >= size:
            found.append(tuple(token for token, _ in tokens[place - size : place]))
    return found or ([tuple(token for token, _ in tokens)] if tokens else [])


def hashes_of(text, words, characters):
    data, places = text_buffers(pa.array([text], pa.large_string()))
    scratch = shingles.room(len(text.encode()))
    count = shingles.shingle_hashes(data, places[0], places[1], folding(), words, characters, scratch)
    return scratch[:count].tolist()


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXT, min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 6))
def test_shingles_are_equal_exactly_where_their_definition_says_so(texts, words, characters):
    hashes, defined = [], []
    for text in texts:
        hashes += hashes_of(text, words, characters)
        defined += shingles_of(text, words, characters)
    assert len(hashes) == len(defined)
    meaning = dict(zip(hashes, defined, strict=True))
    assert [meaning[each] for each in hashes] == defined
    assert len(meaning) == len(set(defined))


@settings(deadline=None, max_examples=100)
@given(st.lists(TEXT, max_size=5))
def test_the_sets_hold_each_shingle_once(texts):
    data, places = text_buffers(pa.array(["x", *texts], pa.large_string())[1:])
    offsets, values = shingles.shingle_sets(data, places[:-1], places[1:], folding(), 2, 3)
    for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        assert values[start:end].tolist() == list(dict.fromkeys(hashes_of(text, 2, 3)))


def test_words_are_compared_without_case_and_punctuation():
    assert hashes_of("Don't stop, \u201cNOW\u201d!", 3, 3) == hashes_of("dont  stop\nnow", 3, 3)
    assert hashes_of("one two three", 3, 3) != hashes_of("one twot hree", 3, 3)


def test_texts_without_spaces_are_compared_by_characters():
    assert shingles_of("\u4e2d\u6587\u5b57", 5, 2) == [("\u4e2d", "\u6587"), ("\u6587", "\u5b57")]
    assert len(hashes_of("\u4e2d\u6587\u5b57\u3002\u4e2d\u6587", 5, 2)) == 4


def sign(hashes):
    multipliers, increments = signatures.permutations(112)
    signature = np.empty(112, np.uint32)
    signatures.sign(hashes, multipliers, increments, signature)
    return signature


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100])
def test_a_signature_is_the_smallest_value_of_each_permutation(count):
    hashes = random_numbers(count, count)
    multipliers, increments = (each.tolist() for each in signatures.permutations(112))
    defined = [
        min((m * (int(each) >> 32) + i) % 2**32 for each in hashes)
        for m, i in zip(multipliers, increments, strict=True)
    ]
    assert sign(hashes).tolist() == defined
    assert all(m % 2 for m in multipliers)


@pytest.mark.parametrize(("shared", "own"), [(900, 50), (600, 200), (300, 300)])
def test_signatures_agree_as_often_as_the_sets_are_similar(shared, own):
    """The agreements of 300 pairs of sets have the mean and the spread of 112 independent draws."""
    similarity = shared / (shared + 2 * own)
    agreements = []
    for pair in range(300):
        values = random_numbers(1000 + pair, shared + 2 * own)
        agreements.append((sign(values[: shared + own]) == sign(np.r_[values[:shared], values[shared + own :]])).sum())
    spread = np.sqrt(112 * similarity * (1 - similarity))
    assert abs(np.mean(agreements) - 112 * similarity) < 4 * spread / np.sqrt(300)
    assert 0.8 < np.std(agreements) / spread < 1.2


def test_candidates_follow_the_curve_of_16_bands_of_7():
    shared, own, pairs = 600, 200, 400
    similarity = shared / (shared + 2 * own)
    found = 0
    for pair in range(pairs):
        values = random_numbers(5000 + pair, shared + 2 * own)
        one, other = sign(values[: shared + own]), sign(np.r_[values[:shared], values[shared + own :]])
        found += (one.reshape(16, 7) == other.reshape(16, 7)).all(1).any()
    expected = 1 - (1 - similarity**7) ** 16
    assert abs(found / pairs - expected) < 4 * np.sqrt(expected * (1 - expected) / pairs)
