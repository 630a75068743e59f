"""Languages: what the model says, what is written down, and whose module reads it."""

import hashlib

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.document import SCHEMA, Documents
from data_pipeline.filters import language
from data_pipeline.filters.language import MODEL, Language, LanguageMode
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents

ENGLISH = "The committee will publish its annual report on the first of March.\nIt has forty pages."
FRENCH = "Le comité publiera son rapport annuel le premier mars.\nIl compte quarante pages."
CHINESE = "委员会将于三月一日公布年度报告。\n报告共四十页。"


def documents(texts, languages=None):
    languages = languages or [None] * len(texts)
    return make_documents([{"text": t, "language": language} for t, language in zip(texts, languages, strict=True)])


def dropped(measured, rules):
    """Return reason -> rows that the rules and drops take."""
    cuts = {r.reason: (measured.scores[r.score] < r.minimum) | (measured.scores[r.score] > r.maximum) for r in rules}
    return {reason: np.flatnonzero(rows).tolist() for reason, rows in (cuts | measured.drops).items() if rows.any()}


def test_the_model_is_the_published_one():
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert digest == "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
    notice = (MODEL.parent / "NOTICE").read_text()
    assert digest in notice and "Attribution-ShareAlike 3.0" in notice


LIBRARY = fasttext.FastText._FastText(str(MODEL))


def assert_as_the_library_says(texts):
    codes, scores = language.identify(pa.array(texts, pa.large_string()), 0)
    for text, code, score in zip(texts, codes, scores, strict=True):
        best, second = (float(each) for each in LIBRARY.predict(text.replace("\n", " "), k=2)[1])
        [label] = LIBRARY.predict(text.replace("\n", " "))[0]
        assert score == pytest.approx(min(best, 1.0), abs=1e-4)
        assert f"__label__{code}" == label or best - second < 1e-4


def test_whole_texts_are_identified_as_the_fasttext_library_does_it_line_by_line():
    assert language.labels() == tuple(label.removeprefix("__label__") for label in LIBRARY.f.getLabels("strict")[0])
    assert_as_the_library_says(
        [ENGLISH, FRENCH, CHINESE, "", "x", "a\0b c\td", "🖕", "ไทย " * 3000, "w" * 1000, "a </s> b", "é"]
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=5))
def test_any_text_is_identified_as_the_fasttext_library_does_it(texts):
    assert_as_the_library_says([text.replace("__label__", "") for text in texts])


def test_max_bytes_cuts_before_a_character_that_it_would_split():
    text = "委员会将于三月一日公布年度报告" * 9
    cut = language.identify(pa.array([text], pa.large_string()), 100)  # 33 characters and a byte
    alone = language.identify(pa.array([text[:33]], pa.large_string()), 0)
    assert (cut[0].tolist(), cut[1].tolist()) == (alone[0].tolist(), alone[1].tolist())


def test_missing_languages_are_filled_in_and_given_ones_believed():
    batch = documents([ENGLISH, FRENCH, ENGLISH, "12 + 34", "\n"], [None, "", "xx", None, None])
    batch = Documents(batch.batch.set_column(6, SCHEMA.field("language"), pa.array([None, None, "xx", None, None])))
    measured = language.measure(batch, Language())
    assert measured.columns["language"].to_pylist() == ["en", "fr", "xx", None, None]
    assert np.isnan(measured.scores["score"]).tolist() == [False, False, True, True, True]


def test_always_replaces_and_compare_counts():
    batch = documents([ENGLISH, FRENCH, CHINESE, CHINESE], ["en-US", "en", "zh_TW", None])
    assert language.measure(batch, Language(mode=LanguageMode.always)).columns["language"].to_pylist() == [
        "en", "fr", "zh", "zh",
    ]  # fmt: skip
    chosen = Language(mode=LanguageMode.compare, drop_disagreements=True)
    measured = language.measure(batch, chosen)
    assert measured.columns["language"].to_pylist() == ["en-US", "en", "zh_TW", "zh"]
    assert measured.counts == {"agrees": 2, "disagrees": 1}
    assert dropped(measured, language.rules(chosen)) == {"disagrees": [1]}


def test_each_language_has_its_own_threshold():
    texts = [ENGLISH, FRENCH, CHINESE, "ok la"]
    batch = documents(texts)
    scores = dict(zip(texts, language.measure(batch, Language()).scores["score"], strict=True))
    assert scores["ok la"] < 0.5 < 0.9 < scores[ENGLISH] < 1
    assert dropped(language.measure(batch, Language()), language.rules(Language())) == {"uncertain": [3]}
    chosen = Language(thresholds={"en": 1.0, "fr": 0.1}, default_threshold=0.0)
    assert dropped(language.measure(batch, chosen), language.rules(chosen)) == {"uncertain_en": [0]}


def test_only_languages_to_keep_stay_and_a_text_without_one_goes():
    chosen = Language(keep=["en", "zh"])
    batch = documents([ENGLISH, FRENCH, CHINESE, "123", FRENCH], [None, None, None, None, "en-GB"])
    assert dropped(language.measure(batch, chosen), language.rules(chosen)) == {"unwanted": [1, 3]}


def test_an_empty_batch_and_a_slice_are_measured():
    assert len(language.measure(documents([]), Language()).scores["score"]) == 0
    measured = language.measure(Documents(documents([ENGLISH, FRENCH, CHINESE]).batch.slice(1, 1)), Language())
    assert measured.columns["language"].to_pylist() == ["fr"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": ["en", "english"]}, "language.keep names english, which lid.176 does not know"),
        ({"thresholds": {"eng": 0.5}}, "language.thresholds names eng"),
        ({"thresholds": {"en": 65}}, "language.thresholds.en=65 must be between 0 and 1"),
        ({"drop_disagreements": True}, "needs language.mode=compare"),
        ({"max_bytes": -1}, "language.max_bytes=-1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        Language(**changes).check()
    assert message in str(error.value)
