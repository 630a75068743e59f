"""Words as hashes, against a plain definition in Python."""

import unicodedata

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters.word_hashes import gram_hash, words_of

ALONE = [(0x0E00, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D)]
MASK = 2**64 - 1


def plain_words(text):
    """Return [(first byte, word)] as `word_hashes.py` describes them."""
    words, byte, current = [], 0, None
    for character in text:
        category, code = unicodedata.category(character), ord(character)
        alone = category == "So" or (
            category[0] in "LMN" and (code >= 0x20000 or any(a <= code <= b for a, b in ALONE))
        )
        if alone:
            words.append((byte, character))
            current = None
        elif category[0] in "LMN" and code < 0x323B0:
            folded = character.lower() if len(character.lower()) == 1 else character
            if current is None:
                words.append((byte, ""))
            current = True
            words[-1] = (words[-1][0], words[-1][1] + folded)
        else:
            current = None
        byte += len(character.encode())
    return words


def plain_hash(word):
    value = 0x9AE16A3B2F90404F
    for character in word:
        value = (value ^ ord(character)) * 0x9E3779B97F4A7C15 & MASK
        value ^= value >> 29
    return value


TEXT = st.text(
    st.one_of(
        st.sampled_from("aAbZ éÉßK's-_9٣中国ไทยกำ🖕\u0301\u00a0ǅİ\n"),
        st.characters(exclude_categories=["Cs"], max_codepoint=0x323AF),
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=4), st.integers(0, 12))
def test_words_are_those_of_the_plain_definition(texts, max_bytes):
    offsets, words = words_of(pa.array(texts, pa.large_string()), max_bytes)
    for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        expected = [plain_hash(word) for byte, word in plain_words(text) if not max_bytes or byte < max_bytes]
        assert words[start:end].tolist() == expected


def test_a_slice_of_an_array_has_its_own_words_only():
    texts = pa.array(["one", "two words", "three"], pa.large_string()).slice(1, 1)
    assert words_of(texts)[1].tolist() == [plain_hash("two"), plain_hash("words")]


def test_an_n_gram_is_not_its_words_in_another_order():
    assert len({gram_hash(text) for text in ("a b", "b a", "a", "b", "ab", "a b b")}) == 6
