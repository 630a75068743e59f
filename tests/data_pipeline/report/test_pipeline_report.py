import re
from html.parser import HTMLParser

import pytest

from data_pipeline.config import DataPipelineConfig
from data_pipeline.report.report import write_report
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.compose import compose

VOID = {"meta", "br", "link", "img", "use", "path", "input", "hr"}


class Checker(HTMLParser):
    """Collects what a browser would load, and tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.loads += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and value[:1] != "#"
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def stages():
    read, gopher = StageStatistics("read"), StageStatistics("gopher_quality")
    shards = StageStatistics("shards", tokens={"web": {"train": 1234, "validation": 56}})
    for number in range(10):
        source = f"source{number}"
        read.count(read.seen, source, "en", 1_000_000, 100)
        read.count(read.kept, source, "en", 1_000_000, 100)
        gopher.count(gopher.seen, source, "en", 1_000_000, 100)
        gopher.count(gopher.kept, source, "en", 400_000, 40)
        gopher.count(gopher.dropped, source, "gopher_quality.too_few_words", 600_000, 60)
    example = {"hash": 1, "record_id": "ab", "source": "web", "file": "a.jsonl", "row": 7, "language": None}
    gopher.example("gopher_quality.too_few_words", {**example, "text": "<script>alert('x')</script> & more"})
    gopher.abstained = {f"gopher_quality.{rule}": count for rule, count in (("words", 77), ("bullets", 5))}
    gopher.abstained["gopher_quality.stop_words"] = 77
    read.example("read.invalid_json", {**example, "row": 9, "text": '{"mail": "jane@example.org"'})
    read.count(read.dropped, "source0", "read.invalid_json", 20)
    gopher.edits = {"gopher_quality.lines": 12}
    gopher.histograms["gopher_quality.oddness"] = {"0.1": 5, "0.9": 1}
    gopher.pairs = {"candidate_documents": 31, "verified_pairs": 17}
    read.noted = {"read.warc_request": 41}
    gopher.cluster_sizes = {"2": 4, "9": 1, "12": 1}
    gopher.hosts, gopher.urls = {"dropped": [[1, "a.org"], [2, "a.org"], [3, "b.org"]]}, {"dropped": 300}
    shards.hosts, shards.urls = {"kept": [[1, "b.org"]]}, {"kept": 50}
    shards.licenses = {"mit": [3, 1000], "none stated": [1, 10]}
    nsfw = StageStatistics("nsfw")
    nsfw.count(nsfw.dropped, "source0", "nsfw.dirty_words", 10)
    nsfw.example("nsfw.dirty_words", {**example, "text": "something dirty"})
    personal = StageStatistics("pii", edits={"pii.email": 31})
    for stage in (nsfw, personal):
        stage.count(stage.kept, "source0", "en", 5)
        stage.count(stage.seen, "source0", "en", 15)
    return [read, nsfw, personal, gopher, shards]


@pytest.fixture
def page(tmp_path):
    config = compose("data", DataPipelineConfig, ["input.paths=[a.jsonl]", "output=out"])
    write_report(tmp_path / "report.html", config, stages())
    return (tmp_path / "report.html").read_text()


def test_the_report_shows_the_funnel_reasons_and_examples(page):
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text.split())
    assert checker.open == []
    for shown in ("1,000", "400", "40.0 %", "1,234", "too_few_words600 60.0 %"):
        assert shown in text
    assert "Abstained on 77 documents: stop_words, wordsAbstained on 5 documents: bullets" in text
    for shown in ("No loss: 41 × warc_request", "31 candidate documents, 17 verified pairs", "(Gopher: 50)"):
        assert shown in text
    assert "a.jsonl · row 7" in text
    of_one = text[text.index("source0", text.index("kept text")) :].replace(" ", "")
    left = "leftafterdocumentstextread1001.0MBnsfw15Bpii15Bgopher_quality400.4MB"
    assert of_one.startswith(f"source010040.0%0.4MB0{left}droppedbydocumentstextgopher_quality.too_few_words600.6MB")
    assert "3 more" in text, "ten sources do not get ten colours"


def test_the_report_shows_problems_hosts_duplicates_licenses_and_personal_data(page):
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text.split())
    assert "row 9" in text
    assert "[e-mail]" in text
    assert "jane@example.org" not in page
    assert "a.org2000200" in text.replace(" ", ""), "100 documents for each of the sample"
    assert "b.org15050100" in text.replace(" ", "")
    assert "8to15221" in text.replace(" ", ""), "two texts of 9 and 12 copies"
    assert "mit31.0kB" in text.replace(" ", "")
    assert "pii.email31" in text.replace(" ", "")
    assert "gopher_quality.oddness" in text
    assert "12 × lines" in text


def test_the_report_shows_what_the_corpus_holds_of_each_benchmark(tmp_path):
    config = compose("data", DataPipelineConfig, ["input.paths=[a.jsonl]", "output=out"])
    before = {"contaminated": 12, "clean": 180, "dirty": 5, "matched_words": 900}
    after = {"contaminated": 2, "clean": 198, "dirty": 0, "matched_words": 90}
    probe = {"examples": 200, "words": 4000, "too_short": 7, "before": before, "after": after}
    told = {"definition": "llama3", "action": "cut", "ngram": 8, "min_share": 0.5, "mismatches": 0}
    write_report(tmp_path / "report.html", config, stages(), {**told, "benchmarks": {"pro<be": probe}})
    checker = Checker()
    checker.feed((tmp_path / "report.html").read_text())
    text = " ".join(checker.text.split())
    assert checker.open == []
    assert "pro<be200712(6.0%)2(1.0%)5(2.5%)0(0.0%)" in text.replace(" ", "")
    assert "8 words in a row, 50.0 % of an example (definition llama3, action cut)" in text


def test_what_may_offend_is_hidden_until_asked_for(page):
    place = page.index("something dirty")
    before = page[:place]
    inner = before[before.rindex("<details") :]
    assert "may be offensive: show them" in inner
    assert "open" not in inner[: inner.index(">")]


def test_every_link_of_the_contents_has_its_section(page):
    links = re.findall(r'href="#([^"]+)"', page)
    assert {"stage-read", "stage-nsfw", "hosts", "problems", "time"} <= set(links)
    assert all(f'id="{link}"' in page for link in links)


def test_the_report_loads_nothing_and_runs_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert checker.loads == []
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(\s*['\"]?http|@import", page)


def test_the_picture_takes_its_colours_from_the_page_in_light_and_dark(page):
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert "var(--series-0)" in svg
    assert "fill" in svg and "svg text { fill: var(--ink)" in page
    assert not re.search(r"(fill|stroke): #", svg)
    assert "prefers-color-scheme: dark" in page


def test_a_report_of_nothing_kept_is_still_written(tmp_path):
    config = compose("data", DataPipelineConfig, ["input.paths=[a.jsonl]", "output=out"])
    read = StageStatistics("read")
    read.count(read.seen, "web", None, 10)
    read.count(read.dropped, "web", "read.invalid_json", 10)
    write_report(tmp_path / "report.html", config, [read, StageStatistics("c4"), StageStatistics("shards")])
    assert "read.invalid_json" in (tmp_path / "report.html").read_text()
