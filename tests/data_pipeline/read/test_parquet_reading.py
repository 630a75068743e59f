import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import InputConfig
from data_pipeline.read import plan
from data_pipeline.read.rows import Rows
from llama_foundation.errors import DataError


def read(path, **settings):
    config = InputConfig(paths=[str(path)], **settings)
    found, statistics = [], []
    for piece in plan.cut(plan.find(config), 10**9, config):
        rows = Rows(piece.file, config, seed=0)
        for _ in plan.read(piece, config, rows):
            pass
        table = rows.take()
        found += table.select(["row", "source", "language", "text"]).to_pylist() if table else []
        statistics.append(rows.statistics)
    return found, statistics


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_rows_are_counted_across_row_groups(tmp_path, kind):
    texts = [f"text {i}" for i in range(1000)]
    table = pa.table({"body": pa.array(texts).cast(kind), "lang": ["en", None] * 500, "source": ["web"] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    found, _ = read(tmp_path / "a.parquet", text_column="body", language_column="lang")
    assert found == [
        {"row": i, "source": "web", "language": ["en", None][i % 2], "text": f"text {i}"} for i in range(1000)
    ]


def test_null_and_invalid_text_spoils_only_its_row(tmp_path):
    values = pa.array([b"one", b"\xff", None, b"four"], pa.binary())
    invalid = pa.StringArray.from_buffers(4, values.buffers()[1], values.buffers()[2], values.buffers()[0])
    pq.write_table(pa.table({"text": invalid}), tmp_path / "a.parquet")
    found, (statistics,) = read(tmp_path / "a.parquet")
    assert [(each["row"], each["text"]) for each in found] == [(0, "one"), (3, "four")]
    assert {reason: tally[0] for reason, tally in statistics.reasons().items()} == {
        "read.invalid_utf8": 1,
        "read.missing_text": 1,
    }


def test_a_missing_column_names_file_row_column_and_what_is_there(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 0 and all others lack the column 'text'.*body, id"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'id' is int64, not a string"):
        read(tmp_path / "a.parquet", text_column="id")


def test_a_file_that_is_not_parquet_is_refused_by_name(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


def test_a_damaged_row_group_is_counted_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i} " * 200 for i in range(30)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle - 40 : middle + 40] = bytes(80)
    path.write_bytes(data)
    found, statistics = read(path)
    assert [each["row"] for each in found] == [*range(10), *range(20, 30)]
    assert list(statistics[1].reasons()) == ["read.damaged_file"]
