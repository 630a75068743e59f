import unicodedata

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.dedup import exact
from data_pipeline.dedup.exact import ExactDedup, keys
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.dedup.conftest import run_stage

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(
            " \t\n\u2003\u3000\u0085\u001c\u0301\u0323e\u00e9\u1100\u1161\u11a8\uac00\u0f73\u2126\U0001d15e"
        ),
    )
)


def text_keys(texts):
    return keys(make_documents([{"text": text} for text in texts])).to_pylist()


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXT, max_size=5))
@example(["\u1b06\u1b35", "a\u0301\u0323", "\U0002f800", " ", ""])
def test_the_key_is_the_hash_of_the_normalised_text(texts):
    defined = [unicodedata.normalize("NFC", " ".join(text.split())).encode() for text in texts]
    assert text_keys(texts) == [xxhash.xxh3_128_digest(each) for each in defined]


def test_every_character_alone_and_behind_another_is_normalised():
    for first in range(0, 0x110000, 0x2000):
        texts = [f"a{chr(code)}" for code in range(first, first + 0x2000) if not 0xD800 <= code < 0xE000]
        defined = [unicodedata.normalize("NFC", " ".join(text.split())).encode() for text in texts]
        assert text_keys(texts) == [xxhash.xxh3_128_digest(each) for each in defined]


def test_texts_that_differ_only_in_white_space_or_composition_are_the_same():
    first, second, third, fourth = text_keys(
        ["caf\u00e9  au\n\tlait ", "cafe\u0301 au lait", "Cafe au lait", "cafe au lait"]
    )
    assert first == second
    assert third != fourth


@pytest.mark.parametrize("cuts", [[], [1], [2, 3]])
def test_one_document_of_each_text_stays(tmp_path, cuts):
    documents = make_documents([{"text": text} for text in ("a b", "a  b", "c", "a b ")])
    kept, statistics = run_stage(tmp_path, exact.run, ExactDedup(), documents, cuts)
    assert sorted((row["text"].split()[0], row["copies"]) for row in kept) == [("a", 3), ("c", 1)]
    best = min(row["record_id"] for row in documents.batch.to_pylist() if row["text"] != "c")
    assert next(row for row in kept if row["copies"] == 3)["record_id"] == best
    assert statistics[0].cluster_sizes == {"3": 1}
