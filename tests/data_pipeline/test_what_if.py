"""What-if against the truth: the same pipeline run again with the new thresholds."""

import json
import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import what_if
from data_pipeline.__main__ import main
from data_pipeline.config import DataPipelineConfig
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.run import run
from data_pipeline.stages import STAGES, LocalStage
from llama_foundation.compose import compose
from llama_foundation.errors import ConfigError, DataError
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.stage_settings import letter_models, settings_of


def measure_words(documents, settings):
    words = [text.split() for text in documents.batch["text"].to_pylist()]
    scores = {
        "words": np.array([len(each) for each in words], np.float64),
        "mean_word_length": np.array([np.mean([len(word) for word in each]) for each in words]),
    }
    return Measurement(scores, drops={"shouting": np.array(["LOUD" in each for each in words])})


def word_rules(settings):
    return [
        Rule("too_few_words", "words", minimum=settings.min_words),
        Rule("words_too_long", "mean_word_length", maximum=settings.max_word_length),
    ]


def measure_sentences(documents, settings):
    """Removes lines of fewer than min_words_per_line words, and counts the sentences of what is left."""
    lines = [text.split("\n") for text in documents.batch["text"].to_pylist()]
    kept = [[line for line in each if len(line.split()) >= settings.min_words_per_line] for each in lines]
    texts = pa.array(["\n".join(each) for each in kept], pa.large_string())
    return Measurement({"sentences": np.array([str(each).count(".") for each in kept], np.float64)}, texts)


def sentence_rules(settings):
    return [Rule("too_few_sentences", "sentences", minimum=settings.min_sentences)]


@pytest.fixture
def stages(monkeypatch):
    """Two stages with rules and the settings of real ones, so that these tests do not depend on what is measured."""
    for name, measure, rules in (
        ("gopher_quality", measure_words, word_rules),
        ("c4", measure_sentences, sentence_rules),
    ):
        monkeypatch.setitem(STAGES, name, LocalStage(name, 1, measure, rules))


def run_once(monkeypatch, directory, output, *overrides):
    monkeypatch.chdir(directory)
    settings = ["input.paths=[*.jsonl]", f"output={output}", "tokenizer.train.vocabulary_size=300", "workers=1"]
    settings += ["pipeline.stages=[gopher_quality,exact_dedup,c4]", "what_if.sample_fraction=1"]
    assert run(compose("data", DataPipelineConfig, [*settings, *overrides])) == 0
    return {stage["stage"]: stage for stage in json.loads((output / "stats.json").read_text())["stages"]}


def write_corpus(directory):
    directory.mkdir()
    generator = random.Random(1)
    for source in ("web", "books"):
        rows = []
        for _ in range(150):
            lines = [
                " ".join(
                    generator.choices(["stone", "of", "extraordinary", "river", "a"], k=generator.randrange(1, 12))
                )
                + generator.choice([".", ""])
                for _ in range(generator.randrange(1, 8))
            ]
            rows.append({"text": "\n".join(lines) + generator.choice(["", "", "", "\nLOUD news for all of us"])})
        rows += rows[:20]
        (directory / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def finished(stages, tmp_path, monkeypatch, capsys):
    directory = write_corpus(tmp_path / "in")
    statistics = run_once(monkeypatch, directory, tmp_path / "out")
    capsys.readouterr()
    return directory, tmp_path / "out", statistics


def ask(monkeypatch, capsys, output, *changes):
    monkeypatch.setattr(sys, "argv", ["llama-data", "what-if", f"output={output}", "json=true", *changes])
    assert main() == 0
    return json.loads(capsys.readouterr().out)


def rounded(tallies):
    return {name: [round(value) for value in tally] for name, tally in tallies.items() if tally[0]}


def of_run(statistics, stage):
    """Return reason -> [documents, bytes] that the stage really dropped."""
    found = {}
    for row in statistics[stage]["dropped"].values():
        for reason, tally in row.items():
            name = reason.removeprefix(f"{stage}.")
            found[name] = [old + new for old, new in zip(found.get(name, [0, 0]), tally, strict=True)]
    return found


def test_what_if_over_all_documents_agrees_with_running_again(finished, tmp_path, monkeypatch, capsys):
    directory, output, before = finished
    changes = ["pipeline.gopher_quality.min_words=25", "pipeline.gopher_quality.max_word_length=6.2"]
    changes.append("pipeline.c4.min_sentences=1")
    told = ask(monkeypatch, capsys, output, *changes)
    after = run_once(monkeypatch, directory, tmp_path / "again", *changes)
    for funnel, statistics in (("before", before), ("after", after)):
        gopher, dedup, c4 = told[funnel]["steps"]
        assert rounded(gopher["dropped"]) == of_run(statistics, "gopher_quality")
        assert (gopher["basis"], dedup["basis"]) == ("exact", "estimate, exact_dedup as in the run")
        assert c4["basis"] == "estimate, exact_dedup as in the run"
    assert rounded(told["before"]["steps"][0]["dropped"]) != rounded(told["after"]["steps"][0]["dropped"])
    real = sum(tally[0] for row in after["c4"]["kept"].values() for tally in row.values())
    assert told["after"]["steps"][2]["kept"][0] == pytest.approx(real, rel=0.1), "copies die alike"


def test_without_a_global_stage_the_estimate_behind_an_edit_still_agrees(stages, tmp_path, monkeypatch, capsys):
    directory = write_corpus(tmp_path / "in")
    order = "pipeline.stages=[c4,gopher_quality]"
    run_once(monkeypatch, directory, tmp_path / "out", order)
    capsys.readouterr()
    changes = ["pipeline.gopher_quality.min_words=12", "pipeline.c4.min_sentences=2"]
    told = ask(monkeypatch, capsys, tmp_path / "out", *changes)["after"]["steps"]
    after = run_once(monkeypatch, directory, tmp_path / "again", order, *changes)
    assert [step["basis"] for step in told] == ["exact", "estimate, behind the edits of c4"]
    for step in told:
        assert rounded(step["dropped"]) == of_run(after, step["stage"])


def test_the_sample_does_not_depend_on_the_cut_and_does_not_touch_the_shards(finished, tmp_path, monkeypatch):
    directory, output, _ = finished
    few = tmp_path / "few"
    run_once(monkeypatch, directory, few, "partition_bytes=3000", "what_if.sample_fraction=0.3")
    assert (few / "shards.json").read_bytes() == (output / "shards.json").read_bytes()
    everything, some = (pq.read_table(path / what_if.FILE).to_pylist() for path in (output, few))
    assert 60 < len(some) < 140
    assert all(row in everything for row in some)
    ids = [row["record_id"] for row in some]
    assert ids == [row["record_id"] for row in everything if row["record_id"] in set(ids)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pipeline.c4.min_words_per_line=3", "is no threshold of a rule of c4: it changes what is measured"),
        ("pipeline.exact_dedup.scope=source", "compares documents"),
        ("pipeline.fineweb.max_newlines=1", "has no stage fineweb"),
        ("pipeline.stages=[c4]", "keeps the stages of the run"),
        ("pipeline.c4.min_sentence=3", "min_sentence"),
        ("pipeline.c4.min_sentences=many", "min_sentences"),
        ("pipeline.c4.min_sentences=3", "every threshold given is what the run had"),
    ],
)
def test_what_cannot_be_told_from_scores_is_refused(finished, monkeypatch, capsys, change, message):
    _, output, _ = finished
    monkeypatch.setattr(sys, "argv", ["llama-data", "what-if", f"output={output}", change])
    assert main() == 2
    assert message in capsys.readouterr().err


def test_the_table_names_the_change_and_how_sure_it_is(finished, monkeypatch, capsys):
    _, output, _ = finished
    monkeypatch.setattr(sys, "argv", ["llama-data", "what-if", f"output={output}", "pipeline.c4.min_sentences=9"])
    assert main() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pipeline.c4.min_sentences: 3 -> 9" in shown
    assert "340 documents of 340 (100.00%)" in shown
    assert "estimate" in shown


def test_a_run_without_scores_and_one_of_another_version_are_told_apart(finished, tmp_path, monkeypatch):
    _, output, _ = finished
    with pytest.raises(DataError, match=r"what_if\.sample_fraction above 0"):
        what_if.run(what_if.WhatIfConfig(str(tmp_path), {"c4": {"min_sentences": 2}}))
    monkeypatch.setitem(STAGES, "c4", LocalStage("c4", 2, measure_sentences, sentence_rules))
    with pytest.raises(ConfigError, match="version 1 of c4, which is now version 2"):
        what_if.run(what_if.WhatIfConfig(str(output), {"c4": {"min_sentences": 2}}))


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if isinstance(stage, LocalStage)])
def test_a_threshold_never_changes_what_is_measured(name, tmp_path):
    """The contract that what-if stands on: a setting that moves a rule leaves every score and every text as it was."""
    stage = STAGES[name]
    settings = settings_of(name, tmp_path)
    generator = random.Random(2)
    words = ["the", "of", "river.", "stone", "#", "1234", "and", "Read more...", "extraordinary!", "\n", "\n\n"]
    texts = [" ".join(generator.choices(words, k=generator.randrange(1, 90))) for _ in range(40)]
    documents = make_documents([{"text": text, "language": "en"} for text in texts])
    with letter_models():
        _compare_measurements(stage, settings, documents)


def _compare_measurements(stage, settings, documents):
    before = stage.measure(documents, settings)
    for key, value in vars(settings).items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        changed = type(settings)(**{**vars(settings), key: value * 2 + 1})
        if stage.rules(changed) == stage.rules(settings):
            continue
        after = stage.measure(documents, changed)
        assert before.scores.keys() == after.scores.keys()
        for score in before.scores:
            np.testing.assert_array_equal(before.scores[score], after.scores[score], f"{key} changes {score}")
        assert (before.texts is None) == (after.texts is None)
        assert before.texts is None or before.texts.equals(after.texts)
