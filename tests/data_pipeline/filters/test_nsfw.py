"""URL lists, word lists and their combination with a classifier."""

import gzip
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_pipeline.filters import nsfw, url_list
from data_pipeline.filters.lexicon import SHIPPED, load_lexicons, matches
from data_pipeline.filters.linear import QUANTILES, Features, LinearModel, save_model
from data_pipeline.filters.nsfw import NSFW, Combination
from data_pipeline.filters.url_list import UrlList
from llama_foundation.errors import ConfigError, DataError
from tests.data_pipeline.conftest import make_documents


def documents(texts, urls=None, languages=None):
    count = len(texts)
    rows = zip(texts, urls or [None] * count, languages or ["en"] * count, strict=True)
    return make_documents([{"text": text, "url": url, "language": language} for text, url, language in rows])


@pytest.fixture
def ut1(tmp_path):
    folder = tmp_path / "adult"
    folder.mkdir()
    (folder / "domains").write_text("# a comment\nbad.example\n10.0.0.7\nbücher.example\n\n")
    with gzip.open(folder / "urls.gz", "wt") as file:
        file.write("mixed.example/adult\nmixed.example/tag?q=1\n")
    return folder


@pytest.mark.parametrize(
    ("url", "drop"),
    [
        ("https://bad.example/", "domain"),
        ("HTTP://User:pw@Img.BAD.example.:8080/x", "domain"),
        ("bad.example", "domain"),
        ("http://10.0.0.7/x", "domain"),
        ("http://xn--bcher-kva.example", "domain"),
        ("http://bücher.example/a", "domain"),
        ("http://www.mixed.example/adult", "url"),
        ("http://mixed.example/adult/", "url"),
        ("https://mixed.example/adult/2?page=3#top", "url"),
        ("https://mixed.example/tag?q=1", "url"),
        ("https://notbad.example/", None),
        ("https://bad.example.com/", None),
        ("https://example/bad.example", None),
        ("http://110.0.0.7/", None),
        ("http://mixed.example/adults", None),
        ("http://mixed.example/tag?q=12", None),
        ("http://mixed.example/", None),
        ("http://sub.mixed.example/adult", None),
        ("http://[broken/", None),
        (None, None),
    ],
)
def test_a_url_is_looked_up_by_host_labels_and_path_steps(ut1, url, drop):
    measured = url_list.measure(documents(["x"], [url]), UrlList(folders=[str(ut1)]))
    assert [reason for reason, rows in measured.drops.items() if rows[0]] == ([drop] if drop else [])
    assert measured.counts["without_url"] == (url is None or "[" in url)


def test_allowed_hosts_stay(ut1):
    settings = UrlList(folders=[str(ut1)], allowed_domains=["good.bad.example"])
    urls = ["https://good.bad.example/", "https://x.good.bad.example/", "https://bad.example/"]
    assert url_list.measure(documents(["x"] * 3, urls), settings).drops["domain"].tolist() == [False, False, True]


def test_a_list_that_would_drop_a_whole_top_level_domain_is_refused(tmp_path):
    (tmp_path / "domains").write_text("fine.example\ncom\n")
    with pytest.raises(DataError, match=r"domains, line 2: 'com' is a whole top-level domain"):
        url_list.measure(documents(["x"], ["http://a.com"]), UrlList(folders=[str(tmp_path)]))


def test_lists_that_are_not_there_are_named(tmp_path):
    for settings, message in (
        (UrlList(), "url_list names no list"),
        (UrlList(folders=[str(tmp_path)]), "holds neither domains nor urls"),
        (UrlList(domains=["nowhere/domains"]), "url_list.domains: nowhere/domains does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings.check()


NUMBERS = itertools.count()


def lexicon(tmp_path, *lines):
    path = tmp_path / f"words{next(NUMBERS)}.tsv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_words_match_whole_and_in_any_case_and_phrases_in_a_row(tmp_path):
    path = lexicon(tmp_path, "en\tcunt", "en\tbig black\t0.5", "en\tblack", "zh\t坏蛋", "de\tHaß")
    texts = ["Scunthorpe United", "CUNT! cunt-like", "a big, BLACK cat", "big blackberry", "black black", ""]
    sums, words = matches(pa.array(texts, pa.large_string()), load_lexicons(path)["en"])
    assert sums.tolist() == [0, 2, 0.5, 0, 2, 0]
    assert words.tolist() == [2, 3, 4, 2, 2, 0]
    assert matches(pa.array(["你这个坏蛋。坏 蛋"], pa.large_string()), load_lexicons(path)["zh"])[0].tolist() == [2]
    assert matches(pa.array(["der HAß"], pa.large_string()), load_lexicons(path)["de"])[0].tolist() == [1]


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)


@hypothesis_settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(st.sampled_from("abcd"), max_size=20))
def test_matches_are_those_of_comparing_lists_of_words(tmp_path_factory, entries, text):
    path = lexicon(tmp_path_factory.getbasetemp(), *(f"en\t{' '.join(entry)}" for entry in entries))
    expected = sum(any(text[: end + 1][-len(entry) :] == entry for entry in entries) for end in range(len(text)))
    assert matches(pa.array([" ".join(text)], pa.large_string()), load_lexicons(path)["en"])[0][0] == expected


def test_the_shipped_list_has_26_languages_and_its_license():
    lexicons = load_lexicons(SHIPPED)
    assert len(lexicons) == 26
    assert "Attribution 4.0" in (SHIPPED.parent / "NOTICE").read_text()
    for language, text in (("en", "Blowjob"), ("de", "Arschloch"), ("ja", "これはオナニーです"), ("ru", "Блядь")):
        assert matches(pa.array([text], pa.large_string()), lexicons[language])[0][0] >= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cunt", "is not language<TAB>entry"),
        ("en\tcunt\tx", "is not language<TAB>entry"),
        ("en\tcunt\t-1", "is not language<TAB>entry"),
        ("en\tcunt\tnan", "is not language<TAB>entry"),
        ("en\t...", r"entry '...' \(en\) has 0 words"),
    ],
)
def test_a_line_that_is_no_entry_is_refused_by_number(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        load_lexicons(lexicon(tmp_path, "en\tfine", line))


def test_density_is_per_word_of_the_language_and_abstains_without_one(tmp_path):
    settings = NSFW(lexicon=str(lexicon(tmp_path, "en\tcunt")), least_words=4, max_density=0.25)
    texts = ["cunt", "cunt a b c d e f g", "cunt", "cunt", "cunt cunt"]
    measured = nsfw.measure(documents(texts, languages=["en", "en-US", "xx", None, "EN"]), settings)
    assert measured.scores["density"].tolist()[:2] == [0.25, 0.125]
    assert np.isnan(measured.scores["density"]).tolist() == [False, False, True, True, False]
    [rule] = nsfw.rules(settings)
    assert (measured.scores["density"] > rule.maximum).tolist() == [False, False, False, False, True]


@pytest.fixture
def classifier(tmp_path):
    """A model whose bias says 0.9 for every text with a word."""
    model = LinearModel(Features(bits=8), np.zeros(256, np.float32), float(np.log(9)), np.zeros(QUANTILES))
    path = tmp_path / "nsfw.safetensors"
    path.write_bytes(save_model(model, {}))
    return str(path)


def test_any_part_drops_a_document(ut1, classifier, tmp_path):
    settings = NSFW(url=UrlList(folders=[str(ut1)]), classifier=classifier, max_probability=0.95, least_words=1)
    settings.check()
    assert [rule.reason for rule in nsfw.rules(settings)] == ["words", "classifier"]
    measured = nsfw.measure(documents(["penis", "fine"], [None, "http://bad.example"]), settings)
    assert measured.drops["domain"].tolist() == [False, True]
    assert measured.scores["density"].tolist() == [1, 0]
    assert measured.scores["probability"] == pytest.approx(0.9)
    assert {str(path) for path in nsfw.files(settings)} >= {classifier, str(SHIPPED), str(ut1 / "domains")}


def test_weighted_is_the_mean_of_the_parts_that_have_an_opinion(ut1, classifier):
    settings = NSFW(
        combine=Combination.weighted, url=UrlList(folders=[str(ut1)]), classifier=classifier, least_words=1,
        max_density=0.5, url_weight=2, lexicon_weight=1, classifier_weight=3,
    )  # fmt: skip
    urls = ["http://bad.example", None, "http://good.example", None]
    batch = documents(["penis a b c", "penis", "...", "..."], urls, ["en", None, None, None])
    measured = nsfw.measure(batch, settings)
    weighted = measured.scores["weighted"]
    assert weighted[:3] == pytest.approx([(2 * 1 + 1 * 0.5 + 3 * 0.9) / 6, 0.9, 0.0])
    assert np.isnan(weighted[3])
    assert measured.drops == {}
    assert [rule.score for rule in nsfw.rules(settings)] == ["weighted"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_lexicon": False}, "nsfw has no part"),
        ({"max_density": 0.0}, "nsfw.max_density=0.0"),
        ({"url_weight": -1.0}, "nsfw.url_weight=-1.0"),
        ({"max_weighted": 2.0}, "nsfw.max_weighted=2.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        NSFW(**changes).check()
    assert message in str(error.value)
