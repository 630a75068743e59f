import random

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.exact import losers, text_key


def test_texts_that_differ_only_in_white_space_or_composition_are_the_same():
    assert text_key("caf\u00e9  au\n\tlait ") == text_key("cafe\u0301 au lait")
    assert text_key("Cafe au lait") != text_key("cafe au lait")


def table(rows):
    keys, priorities, record_ids = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "key": pa.array(keys, pa.binary(16)),
            "priority": pa.array(priorities, pa.int32()),
            "record_id": pa.array(record_ids, pa.binary(16)),
        }
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5).map(lambda n: bytes([n * 50]) * 16),
            st.integers(0, 2),
            st.binary(min_size=16, max_size=16),
        ),
        unique_by=lambda row: row[2],
        max_size=30,
    ),
    st.randoms(),
)
def test_the_smallest_by_priority_and_record_id_survives_in_any_order(rows, shuffler):
    best = {}
    for key, *rest in rows:
        best[key] = min(best.get(key, rest), rest)
    shuffler.shuffle(rows)
    dropped, sizes = losers(table(rows))
    kept = {(key, *rest) for (key, *rest), lost in zip(rows, dropped, strict=True) if not lost}
    assert kept == {(key, *rest) for key, rest in best.items()}
    assert sum((size - 1) * count for size, count in sizes.items()) == dropped.sum()


def test_cluster_sizes_are_counted():
    rows = [
        (bytes([key]) * 16, 0, random.randbytes(16))
        for key, copies in ((1, 1), (2, 3), (3, 3), (4, 2))
        for _ in range(copies)
    ]
    assert losers(table(rows))[1] == {3: 2, 2: 1}
