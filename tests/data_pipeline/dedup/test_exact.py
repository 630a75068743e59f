import unicodedata

import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.dedup import exact
from data_pipeline.dedup.exact import ExactDedup, text_keys
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


def keys_of(texts):
    return text_keys(pa.array(texts, pa.large_string())).to_pylist()


def defined_keys(texts):
    return [xxhash.xxh3_128_digest(unicodedata.normalize("NFC", " ".join(text.split())).encode()) for text in texts]


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXT, max_size=5))
@example(["\u1b06\u1b35", "a\u0301\u0323", "\U0002f800", " ", ""])
def test_the_key_is_the_hash_of_the_normalised_text(texts):
    assert keys_of(texts) == defined_keys(texts)


def test_every_character_behind_another_is_normalised():
    codes = [*range(0xD800), *range(0xE000, 0x20000), *range(0x2F800, 0x2FA20), *range(0xE0000, 0xE0200)]
    texts = [f"a{chr(code)}" for code in codes]
    assert keys_of(texts) == defined_keys(texts)


def test_texts_that_differ_only_in_white_space_or_composition_are_the_same():
    first, second, third, fourth = keys_of(
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
