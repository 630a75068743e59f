import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.document import SCHEMA, keyed_hashes, record_id
from data_pipeline.filters.measure import Measurement
from tests.data_pipeline.conftest import make_documents


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


def test_what_is_known_of_texts_follows_their_rows_and_ends_with_an_edit():
    batch = make_documents([{"text": "a b"}, {"text": "c"}, {"text": "d e f"}])
    words = batch.texts.words()
    kept = batch.select(np.array([False, True, True]))
    assert kept.texts.words().starts is words.starts
    assert kept.texts.words().counts.tolist() == [1, 3]
    scored = kept.with_measurement("x", Measurement({"y": np.array([0.5, np.nan])}))
    assert scored.texts is kept.texts
    texts = pa.array(["new words here", "d e f"], pa.large_string())
    edited = kept.with_measurement("x", Measurement({"y": np.array([0.5, np.nan])}, texts))
    assert edited.batch["text"].to_pylist() == ["new words here", "d e f"]
    assert edited.texts.words().counts.tolist() == [3, 3]
    assert edited.batch["record_id"].equals(kept.batch["record_id"])
    assert edited.batch.schema.names == [*SCHEMA.names, "x.y"]
    assert edited.batch["x.y"].to_pylist() == [0.5, None]


def test_a_language_stands_for_its_regions_and_an_unknown_one_for_none():
    rows = make_documents([{"language": each} for each in ("en", "en-US", "EN_gb", "de", None, "eng")])
    assert rows.in_languages(["en", "fr"]).tolist() == [True, True, True, False, False, False]
    assert make_documents([{"language": None}]).in_languages(["en"]).tolist() == [False]
