"""Every preset, from a WARC and a multilingual JSONL file to shards."""

import gzip
import json
import random
import re

import pytest

from data_pipeline.config import DataPipelineConfig
from data_pipeline.run import run
from data_pipeline.stages import STAGES
from llama_foundation.compose import CONFIGS, compose
from llama_foundation.errors import ConfigError

PRESETS = sorted(path.stem for path in (CONFIGS / "pipeline").glob("*.yaml"))

WORDS = re.findall(
    r"\w+",
    "the the the of of and and to to that with have be in a was his her their which when where while after before "
    "miller sister traveller captain people winter river bridge letter library garden village morning evening "
    "summer stone bread wine books house window mountain street children mother father brother teacher doctor "
    "farmer soldier carried remembered brought looked answered followed opened believed wondered crossed written "
    "spoken forgotten heavy younger northern quiet ancient golden narrow distant sudden careful bitter gentle "
    "curious honest broken slowly never always perhaps again almost together toward beneath between without "
    "through against across ",
)
GERMAN = "Der Zug nach Süden fährt heute um zehn Uhr ab, und wer mitfahren möchte, soll bitte nicht zu spät kommen. "
JAPANESE = "字が並ぶだけの文章です。単語の間に空白はありません。"


def story(number: int) -> list[str]:
    """Return paragraphs of English prose, different for every number."""
    generator = random.Random(number)
    return [" ".join(" ".join(generator.choices(WORDS, k=14)).capitalize() + "." for _ in range(5)) for _ in range(6)]


def page(paragraphs: list[str]) -> bytes:
    body = "".join(f"<p>{each}</p>" for each in paragraphs)
    menu = "<nav><a href='/'>Home</a> <a href='/about'>About</a></nav>"
    return (
        f"<html><head><title>x</title></head><body>{menu}<main><article>{body}</article></main></body></html>".encode()
    )


def warc_record(kind: str, url: str, content: bytes, date: str = "2024-05-18T01:58:10Z") -> bytes:
    mime = "application/http; msgtype=response" if kind == "response" else "application/warc-fields"
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: {date}\r\nWARC-Target-URI: {url}\r\nContent-Type: {mime}\r\n"
    return gzip.compress(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content + b"\r\n\r\n", mtime=0)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n\r\n".encode() + body


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """24 pages, of which one comes twice, one with another word and one again under its URL; noise around them."""
    folder = tmp_path_factory.mktemp("crawl")
    records = [warc_record("warcinfo", "urn:x", b"software: test\r\n")]
    for number in range(24):
        records.append(warc_record("response", f"http://site{number % 5}.example/{number}", http(page(story(number)))))
    changed = [story(0)[0].replace(" the ", " this ", 1), *story(0)[1:]]
    records.append(warc_record("response", "http://mirror.example/0", http(page(story(1)))))
    records.append(warc_record("response", "http://mirror.example/1", http(page(changed))))
    records.append(
        warc_record("response", "http://site2.example/2", http(page(story(99))), date="2025-01-01T00:00:00Z")
    )
    mail = [*story(50)[:5], "Write to jane.doe@mail.example with your questions about this and the other books."]
    records.append(warc_record("response", "http://mail.example/", http(page(mail))))
    records.append(warc_record("response", "http://short.example/", http(page(["Buy now!"]))))
    records.append(warc_record("response", "http://gone.example/", http(b"gone", "404 Not Found")))
    broken = bytearray(warc_record("response", "http://broken.example/", http(page(story(60)))))
    middle = len(broken) // 2
    broken[middle : middle + 40] = bytes(40)
    records += [bytes(broken), warc_record("response", "http://last.example/", http(page(story(70))))]
    (folder / "CC-MAIN-2024-22.warc.gz").write_bytes(b"".join(records))
    rows = [{"text": GERMAN * 6 + f"Nummer {number}.", "lang": "de"} for number in range(4)]
    rows += [{"text": JAPANESE * 5, "lang": "ja"}, {"text": " ".join(story(80)), "lang": "en"}, {"text": "\u0000"}]
    lines = [json.dumps(row) for row in rows]
    (folder / "mixed.jsonl").write_text("\n".join([*lines[:3], "{broken", *lines[3:]]) + "\n")
    return folder


def configured(corpus, output, preset, *more):
    plain = [f"pipeline={preset}", f"input.paths=[{corpus}/*]", f"output={output}", "input.language_column=lang"]
    plain += ["tokenizer.train.vocabulary_size=900"]
    return compose("data", DataPipelineConfig, [*plain, *more])


def preset_stages(preset):
    text = (CONFIGS / "pipeline" / f"{preset}.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("stages:")]
    return [name.strip() for name in line.partition("[")[2].rstrip("]").split(",")]


RUNNABLE = [preset for preset in PRESETS if set(preset_stages(preset)) <= STAGES.keys()]


def dropped(stages, name):
    """Return reason -> documents that a stage dropped."""
    found = {}
    for row in stages[name]["dropped"].values():
        for reason, (documents, _) in row.items():
            found[reason] = found.get(reason, 0) + documents
    return found


def documents(tallies):
    return sum(tally[0] for row in tallies.values() for tally in row.values())


@pytest.mark.parametrize("preset", RUNNABLE)
@pytest.mark.timeout(300)
def test_a_preset_makes_shards_of_a_crawl_and_the_number_of_workers_changes_nothing(preset, corpus, tmp_path, capsys):
    config = configured(corpus, tmp_path / "one", preset, "workers=1")
    assert run(config) == 0
    told = capsys.readouterr().out
    assert config.pipeline.departures
    for departure in config.pipeline.departures:
        assert f"- {departure}" in told
    written = json.loads((tmp_path / "one" / "stats.json").read_text())
    assert "pipeline.departures" not in written["settings"]
    stages = {stage["stage"]: stage for stage in written["stages"]}
    assert list(stages) == ["read", *config.pipeline.stages, "shards"]
    for before, after in zip(list(stages.values())[:-1], list(stages.values())[1:], strict=True):
        assert documents(before["kept"]) == documents(after["seen"]), after["stage"]
        assert documents(after["seen"]) == documents(after["kept"]) + sum(dropped(stages, after["stage"]).values())
    assert dropped(stages, "read") == {
        "read.invalid_json": 1,
        "read.damaged_gzip": 1,
        "read.http_status_not_200": 1,
    }
    assert stages["read"]["noted"]["read.warc_warcinfo"] == 1
    assert 15 <= documents(stages["shards"]["kept"]) <= 36
    assert "site3.example" in {host for _, host in stages["shards"]["hosts"]["kept"]}
    if "minhash_dedup" in stages:
        assert dropped(stages, "minhash_dedup")["minhash_dedup.near_duplicate"] >= 1
    if config.pipeline.language.keep == ["en"] and "language" in stages:
        kept = {language for row in stages["language"]["kept"].values() for language in row}
        assert kept == {"en"}
    page_ = (tmp_path / "one" / "report.html").read_text()
    assert all(f'id="stage-{name}"' in page_ for name in ["read", *config.pipeline.stages])
    assert run(configured(corpus, tmp_path / "three", preset, "workers=3", "partition_bytes=4000")) == 0
    assert (tmp_path / "three" / "shards.json").read_bytes() == (tmp_path / "one" / "shards.json").read_bytes()


def test_a_preset_with_a_stage_that_is_not_there_is_refused_by_name(corpus, tmp_path):
    for preset in set(PRESETS) - set(RUNNABLE):
        with pytest.raises(ConfigError, match=r"pipeline\.stages names"):
            configured(corpus, tmp_path, preset)


def test_other_words_about_departures_do_not_make_other_shards(corpus, tmp_path, capsys):
    stages = "pipeline.stages=[extract,exact_dedup]"
    assert run(configured(corpus, tmp_path / "out", "quickstart", "workers=1", stages)) == 0
    assert run(configured(corpus, tmp_path / "out", "quickstart", stages, "pipeline.departures=[none]")) == 0
    assert "nothing to do" in capsys.readouterr().out
