import numpy as np
import pyarrow as pa
import pytest
import xxhash

from data_pipeline.document import SCHEMA, Documents, TextView, keyed_hashes, record_id


def documents(texts):
    rows = [record_id("s", "f", row, None, None) for row in range(len(texts))]
    columns = [rows, ["s"] * len(rows), ["f"] * len(rows), range(len(rows))]
    columns += [[None] * len(rows)] * 3 + [texts]
    columns += [[each] * len(rows) for each in (None, None, None, False, 1, None)]
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return Documents(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))


def test_record_ids_depend_on_every_field_and_on_where_one_ends():
    base = ("source", "file", 7, "url", "date")
    variants = [base, ("sourcef", "ile", 7, "url", "date"), ("source", "file", 8, "url", "date")]
    variants += [
        ("source", "file", 7, None, "date"),
        ("source", "file", 7, "", "date"),
        ("source", "file", 7, "url", None),
    ]
    ids = [record_id(*each) for each in variants]
    assert len(set(ids)) == len(ids)
    assert {len(each) for each in ids} == {16}
    assert record_id(*base) == ids[0]


def test_record_ids_never_change():
    fields = [b"wiki", b"wiki.jsonl", b"12"]
    written_out = b"".join(len(field).to_bytes(8, "little") + field for field in fields) + b"\xff" * 16
    assert record_id("wiki", "wiki.jsonl", 12, None, None) == xxhash.xxh3_128_digest(written_out)
    assert record_id("wiki", "wiki.jsonl", 12, None, None).hex() == "37b58b1c505fee2b3212daea83076853"


def test_keyed_hashes_differ_by_purpose_and_seed_and_look_uniform():
    ids = [record_id("s", "f", row, None, None) for row in range(4000)]
    hashes = {key: keyed_hashes(ids, *key) for key in (("order", 0), ("order", 1), ("validation", 0))}
    for hash_ in hashes.values():
        assert abs(float((hash_ < np.uint64(2**63)).mean()) - 0.5) < 0.03
    first, *others = hashes.values()
    for other in others:
        assert abs(float(((first < np.uint64(2**63)) & (other < np.uint64(2**63))).mean()) - 0.25) < 0.03


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("plain words", True),
        ("das ist schön", True),
        ("한국어는 띄어쓰기를 한다", True),
        ("これは日本語の文章です。", False),
        ("ภาษาไทยไม่มีช่องว่าง", False),
        ("the Chinese word 中文 once in a long English sentence", True),
        ("", True),
    ],
)
def test_scripts_without_spaces_are_noticed(text, spaced):
    assert TextView(text, None).spaced is spaced


def test_views_follow_their_rows_through_selection_and_edits():
    batch = documents(["a b", "c", "d e f"])
    first = batch.views[2]
    kept = batch.select(np.array([False, True, True]))
    assert kept.views[1] is first
    edited = kept.with_texts({0: "new words here"})
    assert edited.batch["text"].to_pylist() == ["new words here", "d e f"]
    assert [len(view.words) for view in edited.views] == [3, 3]
    assert edited.batch["record_id"].equals(kept.batch["record_id"])
    scored = edited.with_scores({"x.y": [0.5, None]})
    assert scored.batch.schema.names == [*SCHEMA.names, "x.y"]
    assert scored.batch["x.y"].to_pylist() == [0.5, None]
