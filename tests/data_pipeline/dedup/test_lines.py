import random
import re
from collections import Counter

import pyarrow as pa
import pytest

from data_pipeline.dedup import lines, units
from data_pipeline.dedup.characters import folding
from data_pipeline.dedup.hashing import text_buffers
from data_pipeline.dedup.lines import LineDedup, Unit
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.dedup.conftest import run_stage, shuffled


def pages(generator, count, published=False):
    """Return documents of own and common lines, some of them in other white space."""
    rows = []
    for number in range(count):
        own = [f"own line {number} {generator.random()}" for _ in range(generator.randrange(3))]
        common = [generator.choice(["  Home", "Log in ", "© 2024", "", "Read  more", "x"]) for _ in range(5)]
        found = own + common
        generator.shuffle(found)
        rows.append({"text": "\n".join(found), "published": published and number % 5 == 0})
    return make_documents(rows)


def by_definition(documents, settings):
    """Line by line, over all documents."""
    rows = sorted(documents.batch.to_pylist(), key=lambda row: (not row["published"], _second_half(row["record_id"])))

    def key(row, line):
        bucket = int.from_bytes(row["record_id"][:8], "little") % settings.buckets
        return bucket, " ".join(line.split())

    def counted(line):
        return len(" ".join(line.split())) >= settings.min_characters

    seen = Counter(key(row, line) for row in rows for line in row["text"].split("\n") if counted(line))
    kept, removed, first = [], 0, set()
    for row in rows:
        left = []
        for line in row["text"].splitlines(keepends=True):
            repeated = counted(line) and seen[key(row, line)] > settings.max_seen
            if repeated and settings.keep_first and key(row, line) not in first:
                first.add(key(row, line))
                repeated = False
            if row["published"] or not repeated:
                left.append(line)
        lost = row["text"].count("\n") + (not row["text"].endswith("\n")) - len(left) if row["text"] else 0
        removed += lost
        if not lost:
            kept.append(row)
        elif "".join(left).strip():
            kept.append({**row, "text": "".join(left).rstrip()})
    return sorted(kept, key=lambda row: row["record_id"]), removed


def _second_half(record_id):
    return int.from_bytes(record_id[8:], "little") >> 1


@pytest.mark.parametrize(
    "settings",
    [
        LineDedup(),
        LineDedup(max_seen=1, keep_first=True),
        LineDedup(max_seen=3, buckets=4),
        LineDedup(max_seen=2, buckets=3, keep_first=True, min_characters=2),
    ],
)
def test_lines_seen_too_often_go_for_any_cut_and_order(tmp_path, settings, monkeypatch):
    generator = random.Random(7)
    documents = pages(generator, 60, published=True)
    expected, removed = by_definition(documents, settings)
    kept, statistics = run_stage(tmp_path / "a", lines.run, settings, documents)
    assert kept == expected
    assert statistics[0].edits == {"line_dedup.lines_removed": removed}
    assert len(kept) < 60
    monkeypatch.setattr(lines, "BYTES_PER_BUCKET", 500)
    mixed = shuffled(documents, generator)
    assert run_stage(tmp_path / "b", lines.run, settings, mixed, [3, 20, 41]) == (kept, statistics)


def test_documents_left_empty_are_dropped_with_a_reason(tmp_path):
    documents = make_documents([{"text": "menu\n\n menu"}, {"text": "menu"}, {"text": ""}, {"text": "own\nmenu\n"}])
    kept, statistics = run_stage(tmp_path, lines.run, LineDedup(max_seen=2), documents)
    assert sorted(row["text"] for row in kept) == ["", "own"]
    assert statistics[0].reasons() == {"line_dedup.empty": [2, 15]}


def units_of(text, unit, folded=False):
    data, places = text_buffers(pa.array([text], pa.large_string()))
    offsets, ends, hashes, sizes = units.split(data, places[:-1], places[1:], folding(), unit, folded)
    encoded = text.encode()
    starts = [0, *ends.tolist()]
    assert offsets.tolist() == [0, len(ends)]
    parts = [encoded[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=False)]
    return parts, hashes.tolist(), sizes.tolist()


def test_paragraphs_end_behind_blank_lines():
    text = "\none\ntwo\n \n\n  three\n\nfour"
    parts, _, sizes = units_of(text, 1)
    assert parts == ["\none\ntwo\n \n\n", "  three\n\n", "four"]
    assert sizes == [len("one two"), len("three"), len("four")]


def test_sentences_end_behind_stops_and_at_line_ends():
    text = 'He said "Stop!" Then 3.5 left. "Why?" she asked\nNobody knew... 他来了。他走了'
    parts, _, _ = units_of(text, 2)
    assert parts == [
        'He said "Stop!" ',
        "Then 3.5 left. ",
        '"Why?" ',
        "she asked\n",
        "Nobody knew... ",
        "他来了。",
        "他走了",
    ]


def test_folded_units_are_the_same_where_ccnet_says_so():
    def normal_form(line):  # lower case, digits as 0, punctuation removed
        return " ".join(re.sub(r"[^\w\s]|_", "", re.sub(r"\d", "0", line.lower())).split())

    found = ["Posted on 12.03.2019!", "posted ON  98-76-5432", "Posted on 1", "«Posté» le 3", "POSTÉ LE 7", "..."]
    hashes = [units_of(line, 0, folded=True)[1][0] for line in found]
    for one in range(len(found)):
        for other in range(len(found)):
            assert (hashes[one] == hashes[other]) == (normal_form(found[one]) == normal_form(found[other]))


def test_three_sentences_that_were_seen_before_go_together(tmp_path):
    common = "One here. Two here. Three here. "
    texts = [f"Start a. {common}End a.", f"Start b. {common}End b.", "One here. Two here. Other."]
    documents = make_documents([{"text": text} for text in texts])
    settings = LineDedup(unit=Unit.sentence, span=3, max_seen=1, keep_first=True)
    kept, statistics = run_stage(tmp_path, lines.run, settings, documents, [1])
    first, second = sorted(documents.batch.to_pylist()[:2], key=lambda row: _second_half(row["record_id"]))
    told = {row["record_id"]: row["text"] for row in kept}
    assert told[first["record_id"]] == first["text"]
    assert told[second["record_id"]] == second["text"].replace(common, "")
    assert "One here. Two here. Other." in told.values()
    assert statistics[0].edits == {"line_dedup.sentences_removed": 3}


def test_a_limit_below_one_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"pipeline\.line_dedup\.max_seen=0 must be at least 1"):
        LineDedup(max_seen=0).check()


def test_a_line_may_be_seen_as_often_as_the_limit_says(tmp_path):
    texts = [f"six\nseven\nown {number}" for number in range(6)] + ["seven\nown 6"]
    kept, statistics = run_stage(tmp_path, lines.run, LineDedup(), make_documents([{"text": text} for text in texts]))
    assert sorted(row["text"] for row in kept) == ["own 6", *(f"six\nown {number}" for number in range(6))]
    assert statistics[0].edits == {"line_dedup.lines_removed": 7}
