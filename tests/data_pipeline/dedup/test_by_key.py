import random
from collections import Counter

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.by_key import decide

ROW = st.tuples(
    st.integers(0, 5).map(lambda n: bytes([n * 50]) * 16),  # key
    st.integers(0, 1),  # scope
    st.booleans(),  # unpublished
    st.integers(0, 2),  # priority
    st.sampled_from([b"", b"a", b"ab"]),  # preference
    st.binary(min_size=16, max_size=16),  # record id
    st.integers(1, 3),  # copies that it stands for already
)


def table(rows):
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    kinds = [pa.binary(16), pa.uint64(), pa.bool_(), pa.int32(), pa.binary(), pa.binary(16), pa.int64()]
    names = ["key", "scope", "unpublished", "priority", "preference", "record_id", "copies"]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)]
    places = [pa.array([0] * len(rows), pa.int64()), pa.array(range(len(rows)), pa.int64())]
    return pa.table([*arrays, *places], names=[*names, "block", "row"])


@settings(deadline=None)
@given(st.lists(ROW, unique_by=lambda row: row[5], max_size=30), st.randoms())
def test_the_best_of_every_key_and_scope_survives_in_any_order(rows, shuffler):
    clusters = {}
    for row in rows:
        clusters.setdefault(row[:2], []).append(row)
    shuffler.shuffle(rows)
    decisions, sizes = decide(table(rows))
    told = {each["row"]: each for each in decisions.to_pylist()}
    for place, row in enumerate(rows):
        cluster = clusters[row[:2]]
        if len(cluster) == 1:
            assert place not in told
            continue
        best = min(cluster, key=lambda each: each[2:6])
        assert told[place]["dropped"] == (row != best)
        assert told[place]["cluster"] == best[5]
        assert told[place]["copies"] == sum(each[6] for each in cluster)
    assert sizes == Counter(len(cluster) for cluster in clusters.values() if len(cluster) > 1)


def test_cluster_sizes_are_counted():
    rows = [
        (bytes([key]) * 16, 0, True, 0, b"", random.randbytes(16), 1)
        for key, copies in ((1, 1), (2, 3), (3, 3), (4, 2))
        for _ in range(copies)
    ]
    assert decide(table(rows))[1] == {3: 2, 2: 1}
