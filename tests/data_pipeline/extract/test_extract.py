import sys

import ftfy
import numpy as np
import pytest

from data_pipeline.extract.extract import (
    MAX_DEPTH,
    EncodingRepair,
    Extract,
    Extractor,
    extract_text,
    measure,
    nested_too_deep,
    rules,
)
from data_pipeline.extract.repair import repair_mojibake
from data_pipeline.filters.measure import KEEP, decide
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents

ARTICLE = "The river carries stones from the mountains to the sea, and the sea gives them back as sand. " * 5
PAGE = f"""<!doctype html><html><head><title>River &amp; sea</title><script>var x = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a><li><a href="/about">About this site</a></ul></nav>
<article><h1>Rivers</h1><p>{ARTICLE}</p><p>Another paragraph: {ARTICLE.lower()}</p></article>
<footer>Copyright somebody</footer></body></html>"""


def extracted(*pages, **settings):
    """What `extract` makes of (content type, text): (reason or None, text) of each, and the measurement."""
    documents = make_documents([{"content_type": kind, "text": text} for kind, text in pages])
    measurement = measure(documents, Extract(**settings))
    verdicts, reasons = decide(measurement, rules(Extract(**settings)), len(pages))
    named = [None if verdict == KEEP else reasons[verdict] for verdict in verdicts]
    return list(zip(named, measurement.texts.to_pylist(), strict=True)), measurement


@pytest.mark.parametrize("extractor", list(Extractor))
def test_the_article_stays_and_what_is_around_it_goes(extractor):
    text = extract_text(PAGE, Extract(extractor=extractor))
    assert text.lower().count("the river carries stones") == 10
    for noise in ("About this site", "Copyright", "var x"):
        assert noise not in text


def test_all_text_and_the_title_come_where_they_are_asked_for():
    text = extract_text(PAGE, Extract(main_content=False, title=True))
    assert text.startswith("River & sea\n\n")
    assert "About this site" in text
    assert "Copyright somebody" in text
    assert "var x" not in text


def test_only_html_is_extracted_and_every_loss_has_a_reason():
    deep = "<div>" * (MAX_DEPTH + 1) + "deep"
    pages = [("text/html", PAGE), ("text/plain", PAGE), (None, "<p>plain"), ("text/html", "<img src=x>")]
    pages += [("text/html", "<p>short"), ("text/html", deep), ("text/html", PAGE)]
    results, measurement = extracted(*pages, min_characters=20)
    reasons = [None, None, None, "no_main_text", "too_short", "nested_too_deep", None]
    assert [reason for reason, _ in results] == reasons
    changed = [row for row, (_, text) in enumerate(results) if text != pages[row][1]]
    assert changed == [0, 6]
    shares = measurement.scores["text_share"]
    assert shares[0] == len(results[0][1]) / len(PAGE)
    assert np.isnan(shares[1])
    kinds = measurement.columns["content_type"].to_pylist()
    assert kinds[:3] == ["text/plain", "text/plain", None]


def test_depth_counts_open_elements_and_not_those_that_authors_leave_open():
    assert not nested_too_deep("<p>word<li><br>" * 10_000)
    assert not nested_too_deep("<div><b>x</b></div>" * 10_000)
    assert not nested_too_deep("<div>" * MAX_DEPTH)
    assert nested_too_deep("<div></div>" * 9 + "<div><P>" * (MAX_DEPTH + 1))


def test_a_page_of_10_megabytes_is_extracted_whole():
    page = "<html><body><article>" + "<p>A sentence of a very long page, again and again.</p>\n" * 180_000
    ((reason, text),) = extracted(("text/html", page))[0]
    assert reason is None
    assert text.count("again and again") == 180_000


@pytest.mark.parametrize(
    "page", ["", "\0\0", "<", "<![CDATA[", "<p>\0nul</p>", "<svg><math><p>", "&#xD800;&#0;", "<p" * 5000]
)
@pytest.mark.parametrize("extractor", list(Extractor))
def test_strange_pages_end_with_text_or_a_reason(page, extractor):
    ((_, text),) = extracted(("text/html", page), extractor=extractor)[0]
    text.encode()  # no lone surrogate


def test_a_missing_extra_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(
        ConfigError, match=r"extractor=trafilatura needs trafilatura.*pip install 'llama-train\[trafilatura\]'"
    ):
        Extract(extractor=Extractor.trafilatura).check()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ConfigError, match=r"encoding_repair=ftfy needs ftfy"):
        Extract(encoding_repair=EncodingRepair.ftfy).check()


def test_settings_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="favor_precision and favor_recall"):
        Extract(favor_precision=True, favor_recall=True).check()
    with pytest.raises(ConfigError, match="min_characters=-1"):
        Extract(min_characters=-1).check()


@pytest.mark.parametrize(
    "right", ["café", "“quoted” — it", "Größe über Öl", "naïve façade", "日本語", "Привет", "€ 5", "emoji 😀", "שלום"]
)
def test_utf8_read_as_windows_1252_is_put_back(right):
    def wrong(text):
        return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())

    assert wrong(right) != right
    assert repair_mojibake(wrong(right)) == right
    assert repair_mojibake(wrong(wrong(right))) == right
    assert repair_mojibake(f"plain\n{wrong(right)}\nend") == f"plain\n{right}\nend"
    assert ftfy.fix_encoding(wrong(right)) == right  # the same by another hand


@pytest.mark.parametrize(
    "text",
    ["café", "Größe", "日本語 café", "Ã", "PÃO", "São Paulo, à la carte", "«Ça» où", "5 £ — ½", "Â", "naïve", "€Ã"],
)
def test_right_text_is_left_alone(text):
    assert repair_mojibake(text) == text


def test_ftfy_is_used_where_it_is_chosen():
    page = "<p>l&rsquo;humanitÃ© &amp;lt;" + ARTICLE
    assert "l'humanité" in extract_text(page, Extract(encoding_repair=EncodingRepair.ftfy, main_content=False))
    assert "humanitÃ©" in extract_text(page, Extract(encoding_repair=EncodingRepair.none, main_content=False))
