import random

import pyarrow as pa
import pytest

from data_pipeline.document import SCHEMA, Documents, record_id
from data_pipeline.filters.c4 import C4
from data_pipeline.filters.gopher_quality import GopherQuality
from data_pipeline.report.statistics import StageStatistics, by_key, by_source, total
from data_pipeline.stages import STAGES, apply_local

WORDS = ["the", "of", "river", "stone", "1234", "a", "extraordinary"]


DEFAULTS = (None, None, None, False, 1, None)  # of the columns behind the text


def batch(count):
    generator = random.Random(3)
    rows = []
    for row in range(count):
        source, language = generator.choice(["web", "books"]), generator.choice(["en", "de", None])
        text = " ".join(generator.choices(WORDS, k=generator.randrange(1, 12)))
        rows.append((record_id(source, "f", row, None, None), source, "f", row, None, None, language, text, *DEFAULTS))
    columns = [
        pa.array(list(values), field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def judged(pieces):
    statistics = StageStatistics("gopher_quality")
    kept = []
    for piece in pieces:
        own = StageStatistics("gopher_quality")
        settings = GopherQuality(min_words=4, min_stop_words=1)
        kept.append(apply_local(STAGES["gopher_quality"], Documents(piece), settings, own, seed=0).batch)
        statistics.merge(own)
    statistics.cpu_milliseconds = 0
    return pa.concat_batches(kept), statistics


def test_every_document_is_kept_or_dropped_for_a_reason_and_counted_once():
    documents = batch(300)
    kept, statistics = judged([documents])
    assert total(statistics.seen)[0] == 300
    assert total(statistics.kept) == [kept.num_rows, sum(len(text.encode()) for text in kept["text"].to_pylist())]
    assert sum(tally[0] for tally in statistics.reasons().values()) == 300 - kept.num_rows
    sources, languages = documents["source"].to_pylist(), documents["language"].to_pylist()
    assert by_source(statistics.seen)["web"][0] == sources.count("web")
    assert by_key(statistics.seen)["unknown"][0] == languages.count(None)
    assert by_key(statistics.kept)["de"][0] == kept["language"].to_pylist().count("de")
    assert kept.schema.names[: len(SCHEMA)] == SCHEMA.names
    assert kept["gopher_quality.words"].to_pylist() == [len(text.split()) for text in kept["text"].to_pylist()]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_statistics_and_examples_do_not_depend_on_the_cut(size):
    documents = batch(300)
    kept, statistics = judged([documents])
    pieces = [documents.slice(start, size) for start in range(0, 300, size)]
    random.Random(size).shuffle(pieces)
    kept_again, again = judged(pieces)
    assert again == statistics
    assert sorted(kept_again["row"].to_pylist()) == kept["row"].to_pylist()
    assert all(1 <= len(examples) <= 3 for examples in statistics.examples.values())


def test_examples_are_the_smallest_hashes():
    documents = batch(300)
    _, statistics = judged([documents])
    kept_rows = set(judged([documents])[0]["row"].to_pylist())
    for reason, examples in statistics.examples.items():
        assert [each["hash"] for each in examples] == sorted(each["hash"] for each in examples)
        assert not {each["row"] for each in examples} & kept_rows
        assert statistics.reasons()[reason][0] >= len(examples)


def test_statistics_survive_json():
    _, statistics = judged([batch(50)])
    assert StageStatistics.from_json(statistics.to_json()) == statistics


def test_an_edit_keeps_the_record_and_counts_what_is_left():
    rows = batch(2)
    good = "This is a good sentence of words."
    texts = pa.array([f"{good}\nno mark here\n{good}", good], pa.large_string())
    documents = Documents(rows.set_column(SCHEMA.get_field_index("text"), SCHEMA.field("text"), texts))
    statistics = StageStatistics("c4")
    kept = apply_local(STAGES["c4"], documents, C4(min_sentences=1), statistics, seed=0).batch
    assert kept["text"].to_pylist() == [f"{good}\n{good}", good]
    assert kept["record_id"].equals(rows["record_id"])
    assert statistics.removed_lines == {"c4.line_without_terminal_punctuation": 1}
    assert total(statistics.seen)[1] - total(statistics.kept)[1] == len("no mark here\n")
