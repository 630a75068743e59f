import pytest
import yaml

from data_pipeline.config import DataPipelineConfig
from data_pipeline.report.dataset_card import write_card
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.compose import compose


def stages(*more):
    read, gopher = StageStatistics("read"), StageStatistics("gopher_quality")
    shards = StageStatistics("shards", tokens={"web": {"train": 1234, "validation": 56}})
    read.count(read.seen, "web", "en-US", 1_000_000, 1000)
    read.count(read.kept, "web", "en-US", 990_000, 990)
    read.count(read.dropped, "web", "read.invalid_json", 10_000, 10)
    gopher.count(gopher.seen, "web", "en-US", 990_000, 990)
    gopher.count(gopher.dropped, "web", "gopher_quality.too_few_words", 90_000, 495)
    gopher.count(gopher.kept, "web", "en-US", 900_000, 495)
    gopher.abstained = {"gopher_quality.words": 77, "gopher_quality.stop_words": 77}
    shards.count(shards.kept, "web", "en-US", 890_000, 490)
    shards.count(shards.kept, "web", None, 10_000, 5)
    shards.licenses = {"mit": [490, 890_000], "none stated": [5, 10_000]}
    shards.noted = {"shards.opt_out": 12}
    return [read, gopher, *more, shards]


def card(tmp_path, statistics):
    config = compose("data", DataPipelineConfig, ["input.paths=[a.jsonl]", f"output={tmp_path}/my_corpus"])
    write_card(tmp_path / "README.md", config, statistics)
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_is_what_was_counted(tmp_path):
    front, body = card(tmp_path, stages())
    assert front["license"] == "other"
    assert front["language"] == ["en"]
    assert front["size_categories"] == ["n<1K"]
    assert body.strip().startswith("# my_corpus")


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        ({"CC-BY-4.0": [5, 5]}, "cc-by-4.0"),
        ({"none stated": [5, 5]}, "unknown"),
        ({"http://a.org/terms": [5, 5]}, "other"),
        ({"mit": [1, 1], "gpl-3.0": [1, 1]}, "other"),
    ],
)
def test_one_license_is_named_and_several_are_not_made_into_one(tmp_path, licenses, expected):
    statistics = stages()
    statistics[-1].licenses = licenses
    assert card(tmp_path, statistics)[0]["license"] == expected


def test_the_card_says_how_it_was_made_and_what_is_not_known(tmp_path):
    _, body = card(tmp_path, stages())
    assert "495 documents, 900.0 kB" in body or "495 documents, 0.9 MB" in body
    assert "990 documents in, 495 kept, 50.0 % of documents removed" in body
    assert "Where `quickstart` departs from its paper:\n\n- documents of 20 words" in body
    assert "`min_words=20`" in body
    assert "| mit | 490 | 0.9 MB |" in body
    assert "12 documents state an opt-out" in body
    assert "No stage looked for personal data" in body
    assert "language of 5 of 495 documents is unknown" in body
    assert "10 records could not be read" in body
    assert (
        "77 documents could not be judged, and passed, by `gopher_quality.stop_words`, `gopher_quality.words`" in body
    )
    assert "Not stated" in body[body.index("## Contact") :]
    assert "Nothing was checked against benchmarks" in body


def test_masked_personal_data_is_stated_with_its_counts(tmp_path):
    personal = StageStatistics("pii", edits={"pii.email": 31})
    _, body = card(tmp_path, stages(personal))
    assert "31 email" in body
    assert "Patterns miss names" in body
