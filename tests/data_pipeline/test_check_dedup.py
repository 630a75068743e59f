"""The dedup check-up: what is planted is known, so what is found can be counted."""

import json
import random

import pytest

from data_pipeline import check_dedup, check_dedup_report
from data_pipeline.check_dedup import Check, DedupCheckConfig, Rate, dropped_as_copies, run_check, unjustified
from data_pipeline.plant import edited, jaccard, plant, s_curve, shingles
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError, DataError
from tests.data_pipeline.conftest import make_documents


class Always(random.Random):
    """Makes the same kind of edit everywhere."""

    def __init__(self, kind):
        super().__init__(1)
        self.kind = kind

    def randrange(self, *_):
        return self.kind


@pytest.mark.parametrize(("rate", "edits"), [(0.0, 0), (0.001, 1), (0.05, 5), (0.1, 10), (1.0, 100)])
def test_the_share_of_edited_words_is_exact(rate, edits):
    words = [f"w{number}" for number in range(100)]
    text = "\n".join(" ".join(words[place : place + 10]) for place in range(0, 100, 10))
    replaced = edited(text, rate, ["new"], Always(0)).split()
    assert (len(replaced), replaced.count("new")) == (100, edits)
    assert all(one in (other, "new") for one, other in zip(replaced, words, strict=True))
    dropped = edited(text, rate, ["new"], Always(1)).split()
    assert len(dropped) == 100 - edits
    assert set(dropped) <= set(words)
    doubled = edited(text, rate, ["new"], Always(2)).split()
    assert [word for word in doubled if word != "new"] == words
    assert len(doubled) == 100 + edits
    assert edited(text, 0.0, ["new"], Always(0)) == text


def test_every_document_is_copied_at_most_once_and_every_rate_as_often():
    texts = [" ".join(f"{number}x{place}" for place in range(30)) for number in range(11)] + ["too short"]
    documents = make_documents([{"text": text} for text in texts])
    copies, planted = plant(documents, [0.0, 0.5], 4, 10, 0)
    assert sorted(rate for _, rate in planted.values()) == [0.0] * 4 + [0.5] * 4
    originals = {original for original, _ in planted.values()}
    assert len(originals) == 8
    assert not originals & planted.keys()
    text_of = dict(zip(documents.batch["record_id"].to_pylist(), texts, strict=True))
    for name, text in zip(copies.batch["record_id"].to_pylist(), copies.batch["text"].to_pylist(), strict=True):
        original, rate = planted[name]
        assert (text == text_of[original]) == (rate == 0)
    assert plant(documents, [0.0, 0.5], 4, 10, 0)[1] == planted
    assert len(plant(documents, [0.0, 0.5], 100, 10, 0)[1]) == 10


def test_similarity_is_counted_by_hand():
    one, other = shingles("The cat, the dog -- and I", 5), shingles("the CAT the dog and you", 5)
    assert one == {("the", "cat", "the", "dog", "and"), ("cat", "the", "dog", "and", "i")}
    assert jaccard(one, other) == 1 / 3
    assert shingles("two words", 5) == {("two", "words")}
    assert jaccard(shingles("!", 5), set()) == 0
    assert s_curve(0.5, 2, 1) == 0.75
    assert s_curve(0.5, 1, 2) == 0.25


def test_only_drops_without_a_reason_are_wrong():
    texts = {
        b"a": "one two three four five six",
        b"A": "one two three four five six",
        b"b": "unlike anything else that is in here",
        b"c": "a natural copy of d which stays in",
        b"d": "a natural copy of d which stays in",
        b"e": "seven eight nine ten eleven twelve",
        b"E": "seven eight nine ten eleven twelve",
    }
    planted = {b"A": (b"a", 0.0), b"E": (b"e", 0.0)}
    assert unjustified({b"A"}, texts, planted, 5, 0.6) == []
    assert unjustified({b"a"}, texts, planted, 5, 0.6) == []
    assert unjustified({b"A", b"b"}, texts, planted, 5, 0.6) == [b"b"]
    assert unjustified({b"d"}, texts, planted, 5, 0.6) == []
    assert unjustified({b"e", b"E"}, texts, planted, 5, 0.6) == [b"e"]  # one of the two had to stay


def test_what_a_cut_leaves_empty_is_no_copy():
    before = {b"a": "", b"b": "", b"c": ""}
    left = {"exact_dedup": {b"a": "", b"b": ""}, "substring_dedup": {b"a": ""}}
    assert dropped_as_copies(["exact_dedup", "substring_dedup"], before, left) == {b"c"}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = random.Random(3)
    words = [f"word{number}" for number in range(2000)]
    texts = [" ".join(generator.choices(words, k=generator.randrange(60, 160))) for _ in range(80)]
    texts += texts[:10]  # natural copies, which must not count as found or as wrong
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def configured(*overrides):
    settings = ["input.paths=[web.jsonl]", "workers=1", "planted.rates=[0,0.1]", "planted.copies=20"]
    return compose("data_check_dedup", DedupCheckConfig, [*settings, *overrides])


def test_exact_deduplication_finds_exact_copies_and_substrings_what_is_long_enough(corpus):
    config = configured(
        "pipeline.stages=[gopher_quality,exact_dedup,substring_dedup]", "pipeline.substring_dedup.min_words=20"
    )
    checked = run_check(config, corpus / "work")
    assert checked.documents == 80 + 40
    exact, changed = checked.rates
    assert (exact.rate, exact.copies, exact.jaccard, exact.found["exact_dedup"], exact.words_left) == (0, 20, 1, 20, 0)
    assert (changed.rate, changed.found["exact_dedup"]) == (0.1, 0)
    assert 0.2 < changed.jaccard < 0.6  # (1 - 0.1)^5 = 0.59 of the shingles stay, so about 0.42
    assert 0.2 * changed.words < changed.words_left < changed.words
    assert (checked.dropped, checked.wrong, checked.precision) == (20, [], 1)
    assert exact.expected is None


def test_the_sample_is_bounded_and_the_same_for_any_workers(corpus):
    config = configured("planted.sample_bytes=20000", "planted.copies=2")
    sample = check_dedup.read_sample(config, corpus / "a").batch
    size = sum(len(text) for text in sample["text"].to_pylist())
    assert 20000 <= size < 20000 + 1600
    config = configured("planted.sample_bytes=20000", "planted.copies=2", "workers=2")
    assert check_dedup.read_sample(config, corpus / "b").batch.equals(sample)
    assert run_check(config, corpus / "c").rates[0].found["exact_dedup"] == 2


def test_what_cannot_be_checked_is_refused(corpus):
    with pytest.raises(ConfigError, match="has no deduplication to check; add one of exact_dedup"):
        configured("pipeline.stages=[gopher_quality]")
    with pytest.raises(ConfigError, match="give shares between 0 and 1"):
        configured("planted.rates=[5]")
    with pytest.raises(DataError, match=r"too few of at least planted\.min_words=1000"):
        run_check(configured("planted.min_words=1000"), corpus / "work")


def test_the_command_prints_a_table_and_writes_a_page(corpus, monkeypatch, capsys):
    arguments = ["llama-data", "input.paths=[web.jsonl]", "workers=1", "planted.rates=[0]", "planted.copies=5"]
    monkeypatch.setattr("sys.argv", arguments)
    assert check_dedup.main() == 0
    printed = capsys.readouterr().out
    assert "100.0%" in printed
    assert "precision 100.00%" in printed
    page = (corpus / "dedup-check.html").read_text()
    assert "<svg" in page  # the curve of quickstart's MinHash
    assert "exact_dedup" in page


def test_the_s_curve_is_drawn_where_the_bands_say(tmp_path, capsys):
    rate = Rate(0.05, 10, 0.8, 0.9, {"minhash_dedup": 9}, 100, 20)
    checked = Check(50, [rate], 10, [b"x"], 14, 8, 0.6)
    check_dedup_report.write(tmp_path / "page.html", checked)
    page = (tmp_path / "page.html").read_text()
    points = page.split('points="')[1].split('"')[0].split()
    assert len(points) == 101
    height = float(points[75].split(",")[1])
    assert height == pytest.approx(320 - 44 - 0.7716 * (320 - 88), abs=0.1)  # 1 - (1 - 0.75^8)^14 = 0.7716
    assert 'cy="67.2"' in page  # nine of ten
    check_dedup_report.show(check_dedup.Console(width=120), checked)
    printed = capsys.readouterr().out
    assert "0.75   77.2% " + "█" * 31 in printed
    assert "precision 90.00%" in printed
